"""`dinit generate`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinit.cli.console import console
from dinit.cli.generate_set import (
    ClassOrder,
    Group,
    LabelsFrom,
    Pack,
    check_set_options,
    is_set_folder,
    labels_of_set,
    make_set,
)
from dinit.cli.options import (
    BatchSize,
    Device,
    Dtype,
    Grid,
    GuidanceOption,
    Name,
    Overwrite,
    SamplerOption,
    SamplerOptions,
    Seed,
    Steps,
    call_options,
    load,
)

if TYPE_CHECKING:
    from dinit.pipelines.call import Call
    from dinit.pipelines.generate import Generated, Pipeline

_FEW_CLASSES = 20  # so many are drawn where none is named
_WHAT = "What"

Classes = Annotated[
    list[str] | None,
    typer.Option(help="Numbers or names, 0,1,2 or all; may be repeated.", rich_help_panel=_WHAT),
]
PerClass = Annotated[int, typer.Option(help="Images of each class.", rich_help_panel=_WHAT)]
Labels = Annotated[
    str | None, typer.Option(help="In place of --classes: one label an image, 3,1,4.", rich_help_panel=_WHAT)
]
NumImages = Annotated[
    int | None,
    typer.Option(
        help="Images without a class, in place of --classes; in a set, of all classes in turn.",
        rich_help_panel=_WHAT,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Contact sheet, .png [default: samples.png, unless --out-dir]; or a folder for a set."),
]
OutDir = Annotated[Path | None, typer.Option(help="A folder of single PNGs with manifest.json.")]
TrajectoryOut = Annotated[
    Path | None, typer.Option("--trajectory", help="Animation of x0 over the steps, .gif or .webp.")
]


def generate(
    name: Name,
    classes: Classes = None,
    per_class: PerClass = 10,
    labels: Labels = None,
    num_images: NumImages = None,
    sampler: SamplerOption = None,
    sampler_option: SamplerOptions = None,
    steps: Steps = None,
    grid: Grid = None,
    guidance: GuidanceOption = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    out: Out = None,
    out_dir: OutDir = None,
    trajectory: TrajectoryOut = None,
    overwrite: Overwrite = False,
    labels_from: LabelsFrom = None,
    class_order: ClassOrder = "balanced",
    group: Group = None,
    pack: Pack = True,
) -> None:
    """Generate images: a labelled contact sheet, single PNGs, an animation; or a large set of them.

    Every PNG carries what made it; `dinit replay` makes it again.

    With a folder as --out, a set of any size: image k has seed and class by k, so that any number of processes
    (accelerate launch -m dinit.cli generate ...), stopped and started again, make the same files.
    """
    if out is not None and is_set_folder(out):
        check_set_options(out_dir, trajectory, overwrite, labels, labels_from, num_images)
        given = {"sampler": sampler, "sampler_options": sampler_option, "steps": steps, "grid": grid}
        wanted = {**given, "guidance": guidance}
        sources = (classes, per_class, labels, num_images, labels_from)
        choose = partial(_choose_labels_of_set, sources=sources, order=class_order, seed=seed)
        make_set(name, out, choose, num_images, wanted, seed, batch_size, (device, dtype), group, pack)
        return
    if out is None and out_dir is None:
        out = Path("samples.png")
    _check_targets(out, out_dir, trajectory, overwrite)
    options = call_options(sampler, sampler_option if sampler else None, steps, grid, guidance)
    pipe = load(name, device, dtype)
    if sampler is None and sampler_option:
        own = pipe.defaults.get("sampler")
        options |= call_options(None, sampler_option, None, None, None, default_sampler=own)
    chosen = choose_labels(pipe, classes, per_class, labels, num_images)
    call = pipe.prepare(chosen, num_images=num_images, seed=seed, batch_size=batch_size, **options)
    _make(pipe, call, out, out_dir, trajectory)


def choose_labels(
    pipe: Pipeline, classes: Sequence[str] | None, per_class: int, labels: str | None, num_images: int | None
) -> list[str | int] | None:
    """The label of every image, class by class; None is unconditional. ValueError for options that conflict."""
    given = [
        option
        for option, value in {"--classes": classes, "--labels": labels, "--num-images": num_images}.items()
        if value
    ]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} contradict each other; give one of them")
    if per_class < 1:
        raise ValueError(f"--per-class must be at least 1, got {per_class}")
    count = pipe.backbone.num_classes
    if num_images is not None or (count == 0 and not given):
        return None
    if labels is not None:
        return list(split_names([labels], pipe.class_names))
    if not classes and count > _FEW_CLASSES:
        raise ValueError(f"this pipeline has {count} classes: name some with --classes, or ask for all")
    names: list[str | int] = [*split_names(classes or ["all"], pipe.class_names)]
    if names == ["all"]:
        names = list(range(count))
    return [name for name in names for _ in range(per_class)]


def _choose_labels_of_set(
    pipe: Pipeline,
    sources: tuple[Sequence[str] | None, int, str | None, int | None, Path | None],
    order: str,
    seed: int,
) -> Sequence[str | int | None] | None:
    """The label of every image of a set; None is unconditional. sources: as `generate` takes them."""
    classes, per_class, labels, num_images, labels_from = sources
    if labels_from is None and num_images is None:
        return choose_labels(pipe, classes, per_class, labels, None)
    names = [] if not classes or list(classes) == ["all"] else split_names(classes, pipe.class_names)
    return labels_of_set(pipe, num_images, names, labels_from, order, seed)


def split_names(given: Sequence[str], class_names: Sequence[str] | None) -> list[str]:
    """Names between commas; a text that is itself the name of a class is left whole. ValueError for blanks."""
    names: list[str] = []
    for text in given:
        names += [text] if text in (class_names or ()) else [part.strip() for part in text.split(",")]
    if not all(names):
        raise ValueError(f"labels are numbers or names between commas, as in 0,1,2; got {', '.join(given)!r}")
    return names


def _check_targets(out: Path | None, out_dir: Path | None, trajectory: Path | None, overwrite: bool) -> None:
    from dinit.pipelines.outputs.targets import ANIMATIONS, check_folder_target, check_target

    if out is not None:
        check_target(out, overwrite, ("png",))
    if trajectory is not None:
        check_target(trajectory, overwrite, ANIMATIONS)
    if out_dir is not None:
        check_folder_target(out_dir, overwrite)


def _make(pipe: Pipeline, call: Call, out: Path | None, out_dir: Path | None, trajectory: Path | None) -> None:
    """Runs the call, writes what was asked for, and says so."""
    start = time.perf_counter()
    generated, frames = _run(pipe, call, keep_frames=trajectory is not None)
    seconds = time.perf_counter() - start
    written = _save(pipe, generated, frames, out, out_dir, trajectory)
    count = len(call.labels)
    noun = "image" if count == 1 else "images"
    console.print(f"{count} {noun} in {seconds:.1f} s, {generated.nfe} NFE each → {', '.join(written)}")


def _run(pipe: Pipeline, call: Call, keep_frames: bool) -> tuple[Generated, list[Any]]:
    """Runs the call under a progress bar. Frames: the posterior mean of every step, if they are to be kept."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dinit.pipelines.generate import Trajectory

    batches = len(call.batches())
    trajectory = Trajectory()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("steps", total=None)

        def after(step: Any) -> None:
            progress.update(task, total=step.total * batches, advance=1)
            if keep_frames:
                trajectory(step)

        generated = pipe.run(call, "raw", after)
    return generated, trajectory.frames


def _save(
    pipe: Pipeline,
    generated: Generated,
    frames: list[Any],
    out: Path | None,
    out_dir: Path | None,
    animation: Path | None,
) -> list[str]:
    """Writes what was asked for. Returns the paths."""
    from dinit.pipelines.outputs.files import save_animation, save_folder, save_sheet

    if out is not None:
        save_sheet(out, pipe, generated)
    if out_dir is not None:
        save_folder(out_dir, pipe, generated)
    if animation is not None:
        save_animation(animation, pipe, generated.call, frames)
    return [str(path) for path in (out, out_dir, animation) if path is not None]
