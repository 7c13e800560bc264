"""`dinit restore`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from dinit.cli.checks import check_entry, check_word, classes_of
from dinit.cli.completion import entries, words
from dinit.cli.console import console
from dinit.cli.given import check_picture
from dinit.cli.names import registry_of
from dinit.cli.options import (
    BatchSize,
    CacheOption,
    CallFlags,
    Device,
    Dtype,
    EditsOption,
    EndOption,
    Grid,
    GuidanceOption,
    Name,
    Opening,
    Overwrite,
    SamplerOption,
    SamplerOptions,
    Seed,
    Steps,
)
from dinit.data.class_names import class_number
from dinit.progress import Progress
from dinit.registry import UnknownName, suggest

if TYPE_CHECKING:
    from torch import Tensor

    from dinit.pipelines.call import Call
    from dinit.pipelines.generate import Generated, Pipeline
    from dinit.pipelines.restoring import Input

_WHAT, _SPEC = "Restoration", "NAME[:KEY=VALUE,…]"
INPUTS = ("auto", "measurement", "image")

Picture = Annotated[
    Path, typer.Argument(metavar="IMAGE", help="The measurement, or an image to measure.", show_default=False)
]
OperatorOption = Annotated[
    str,
    typer.Option(
        "--operator",
        metavar=_SPEC,
        autocompletion=entries("operators"),
        help="What the measurement has done to the image, such as mask:box=2,2,6,6 or downscale:factor=4.",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
Noise = Annotated[
    float,
    typer.Option(
        min=0,
        help="Standard deviation of the measurement's noise, where black is -1 and white 1.",
        rich_help_panel=_WHAT,
    ),
]
InputOption = Annotated[
    str,
    typer.Option(
        "--input",
        metavar="WORD",
        autocompletion=words(INPUTS),
        help="What IMAGE is: measurement, or image, which is measured first. auto: a measurement, if "
        "it has the size of one.",
        rich_help_panel=_WHAT,
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        metavar=_SPEC,
        help="Posterior guidance or posterior sampler. Default: mmps, or dps for an operator that is not linear.",
        rich_help_panel=_WHAT,
    ),
]
ClassOption = Annotated[
    str | None,
    typer.Option("--class", help="Number or name of the class. Default: none.", rich_help_panel=_WHAT),
]
NumImages = Annotated[int, typer.Option(min=1, help="Number of restorations.", rich_help_panel=_WHAT)]
Truth = Annotated[
    Path | None,
    typer.Option(help="The true image, for PSNR, SSIM and its rank. Default: none.", rich_help_panel=_WHAT),
]
Out = Annotated[Path, typer.Option(help="Sheet of the restorations, .png.")]
TrajectoryOut = Annotated[
    Path | None,
    typer.Option(
        "--trajectory", help="Animation of the posterior mean over the steps, .gif or .webp. Default: none."
    ),
]


def restore(
    name: Name,
    image: Picture,
    operator: OperatorOption,
    noise: Noise = 0.0,
    input_: InputOption = "auto",
    method: MethodOption = None,
    class_: ClassOption = None,
    num_images: NumImages = 8,
    truth: Truth = None,
    sampler: SamplerOption = None,
    sampler_option: SamplerOptions = None,
    steps: Steps = None,
    grid: Grid = None,
    end: EndOption = None,
    guidance: GuidanceOption = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    cache: CacheOption = None,
    edits: EditsOption = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    out: Out = Path("restored.png"),
    trajectory: TrajectoryOut = None,
    overwrite: Overwrite = False,
) -> None:
    """Restore a measured image: samples of the images that a measurement leaves possible.

    The sheet has the measurement, the restorations, their mean and their standard deviation. It records the call,
    and `dinit replay` makes it again from the input, which is copied to FILE.input.png next to it.

    Examples:
        dinit restore digits-dico hole.png --operator mask:box=2,2,6,6 --class 3
        dinit restore glyphs-32 small.png --operator downscale:factor=4 --noise 0.02
    """
    opening = Opening(name, device, dtype)
    flags = CallFlags(sampler, sampler_option, steps, grid, guidance, seed, batch_size, end, cache, edits)
    flags.check()
    opening.check()
    check_entry("operators", operator)
    _check_method(method)
    check_word("input", input_, INPUTS)
    check_picture(image)
    if truth is not None:
        check_picture(truth)
    _check_class(name, class_)
    _check_files(out, trajectory, overwrite)
    pipe = opening.open(to_generate=True)
    from dinit.pipelines.restoring import read_measurement, read_truth

    measurement, measured = read_measurement(pipe, image, operator, noise, cast("Input", input_), seed)
    true = measured if truth is None else read_truth(pipe, truth)
    options: dict[str, Any] = {**flags.options(pipe.defaults.get("sampler")), "measurement": measurement}
    if method is not None:
        options["method"] = method
    call = pipe.prepare(class_, num_images=num_images, seed=seed, **options)
    _make(pipe, call, true, out, trajectory)


def _make(pipe: Pipeline, call: Call, truth: Tensor | None, out: Path, trajectory: Path | None) -> None:
    """Run the call, write the files, and report the scores."""
    from dinit.pipelines.outputs.files import save_animation
    from dinit.pipelines.outputs.restoration import save_restoration

    start = time.perf_counter()
    generated, frames = _run(pipe, call, trajectory is not None)
    seconds = time.perf_counter() - start
    scores = save_restoration(out, pipe, generated, truth)
    written = [str(out)]
    if trajectory is not None:
        save_animation(trajectory, pipe, call, frames, generated.nfe)
        written.append(str(trajectory))
    for what, text in scores.rows():
        console.print(f"  {what}: {text}", markup=False, highlight=False)
    count = len(call.labels)
    noun = "restoration" + "s" * (count != 1)
    console.print(f"{count} {noun} in {seconds:.1f} s, {generated.nfe} NFE each → {', '.join(written)}")


def _run(pipe: Pipeline, call: Call, animated: bool) -> tuple[Generated, list[Any]]:
    """The restorations, and the posterior mean of every step where it is shown."""
    from dinit.pipelines.callbacks import Trajectory

    batches, trajectory = len(call.batches()), Trajectory()
    with Progress("restore", None, "steps", speed=None, enabled=True) as progress:

        def after(step: Any) -> None:
            progress.update(total=step.total * batches)
            if animated:
                trajectory(step)

        return pipe.run(call, "raw", after), trajectory.frames


def _check_method(method: str | None) -> None:
    """ValueError for a method that is in neither registry, or has other options."""
    if method is None:
        return
    name = method.partition(":")[0].strip()
    own = name in registry_of("posterior-samplers")
    try:
        check_entry("posterior-samplers" if own else "guidance", method)
    except UnknownName as error:
        from dinit.pipelines.method import method_names

        raise ValueError(f"unknown method {name!r}{suggest(name, method_names())}") from error


def _check_class(name: str, text: str | None) -> None:
    """ValueError for a class that the pipeline has not, where it is on this machine."""
    known = classes_of(name)
    if text is not None and known is not None:
        class_number(text, *known)


def _check_files(out: Path, trajectory: Path | None, overwrite: bool) -> None:
    from dinit.targets import ANIMATIONS, check_target

    check_target(out, overwrite, ("png",))
    if trajectory is not None:
        check_target(trajectory, overwrite, ANIMATIONS)
