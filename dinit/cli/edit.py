"""`dinit edit`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinit.cli.checks import check_entry, classes_of
from dinit.cli.completion import entries
from dinit.cli.console import console
from dinit.cli.given import check_picture
from dinit.cli.options import (
    BatchSize,
    CallFlags,
    Device,
    Dtype,
    Grid,
    GuidanceOption,
    Name,
    Opening,
    Overwrite,
    Seed,
)
from dinit.data.class_names import class_number
from dinit.progress import Progress
from dinit.targets import ANIMATIONS, check_target

if TYPE_CHECKING:
    from torch import Tensor

    from dinit.inverse import EditingStep
    from dinit.pipelines.editing import EditCall, EditedImages
    from dinit.pipelines.generate import Pipeline

_WHAT = "Edit"

Picture = Annotated[Path, typer.Argument(metavar="IMAGE", help="The image to edit.", show_default=False)]
FromOption = Annotated[
    str,
    typer.Option("--from", help="Number or name of its class.", rich_help_panel=_WHAT, show_default=False),
]
ToOption = Annotated[
    str,
    typer.Option(
        "--to", help="Number or name of the class that it is to have.", rich_help_panel=_WHAT, show_default=False
    ),
]
MethodOption = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME[:KEY=VALUE,…]",
        autocompletion=entries("editing-methods"),
        help="The editing method; `dinit list editing-methods` has them.",
        rich_help_panel=_WHAT,
    ),
]
StepsOption = Annotated[int, typer.Option(min=2, help="Sampling steps.")]
Out = Annotated[Path, typer.Option(help="Sheet of the image and its edit, .png.")]
TrajectoryOut = Annotated[
    Path | None,
    typer.Option("--trajectory", help="Animation of the edit over the steps, .gif or .webp. Default: none."),
]


def edit(
    name: Name,
    image: Picture,
    from_: FromOption,
    to: ToOption,
    method: MethodOption = "direct",
    steps: StepsOption = 50,
    grid: Grid = None,
    guidance: GuidanceOption = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    out: Out = Path("edited.png"),
    trajectory: TrajectoryOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Edit an image from one class to another and keep the rest of it.

    The sheet has the image, as the method makes it again of its own class, as edited, and the difference. It
    records the call, and `dinit replay` makes it again from the image, which is kept as FILE.input.png next to it.

    Examples:
        dinit edit glyphs-32 letter.png --from K --to R
        dinit edit digits-dico three.png --from 3 --to 8 --method infedit
    """
    opening = Opening(name, device, dtype)
    flags = CallFlags(None, (), steps, grid, guidance or (), seed, batch_size, None)
    flags.check()
    opening.check()
    check_entry("editing-methods", method)
    check_picture(image)
    known = classes_of(name)
    if known is not None:
        class_number(from_, *known)
        class_number(to, *known)
    check_target(out, overwrite, ("png",))
    if trajectory is not None:
        check_target(trajectory, overwrite, ANIMATIONS)
    pipe = opening.open(to_generate=True)
    given: dict[str, Any] = {
        key: value
        for key, value in flags.options(pipe.defaults.get("sampler")).items()
        if key in ("grid", "guidance", "batch_size") and value is not None
    }
    call = pipe.prepare_edit(image, source=from_, target=to, method=method, steps=steps, seed=seed, **given)
    _make(pipe, call, out, trajectory)


def _make(pipe: Pipeline, call: EditCall, out: Path, trajectory: Path | None) -> None:
    """Run the call, write the files, and report what the method loses."""
    from dinit.pipelines.outputs.edits import save_edit, save_edit_animation

    start = time.perf_counter()
    edited, frames = _run(pipe, call, trajectory is not None)
    seconds = time.perf_counter() - start
    save_edit(out, pipe, edited)
    if trajectory is not None:
        save_edit_animation(trajectory, pipe, edited, frames)
    error = float((edited.reconstructions.cpu() - call.image).square().mean().sqrt())
    console.print(f"  made again of its own class with a root mean square error of {error:.3g}", highlight=False)
    written = f"{out}" if trajectory is None else f"{out}, {trajectory}"
    console.print(f"{edited.nfe} NFE in {seconds:.1f} s → {written}", markup=False, highlight=False)


def _run(pipe: Pipeline, call: EditCall, animated: bool) -> tuple[EditedImages, list[Tensor]]:
    """The edit with its progress, and the prediction of the edited images after every step where it is shown."""
    from dinit.pipelines.callbacks import Trajectory

    branches = len(call.method.branches) * -(-len(call.image) // call.batch_size)
    trajectory = Trajectory()
    with Progress("edit", None, "steps", speed=None, enabled=True) as progress:

        def after(step: EditingStep) -> None:
            progress.update(total=step.total * branches)
            if animated and step.branch == "edit":
                trajectory(step)

        return pipe.run_edit(call, "raw", after), trajectory.frames
