"""`dinit generate` into a folder: large sets of images, by any number of processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinit.cli.console import console
from dinit.cli.options import call_options, load

if TYPE_CHECKING:
    from dinit.pipelines.generate import Pipeline
    from dinit.pipelines.outputs.sets import MadeSet, Progress

_SETS = "Sets of images (--out FOLDER)"
_EVERY = 10.0  # seconds between lines where no bar can be drawn

LabelsFrom = Annotated[
    Path | None,
    typer.Option(help="One label an image: .npy, .npz (arr_1) or lines of text.", rich_help_panel=_SETS),
]
ClassOrder = Annotated[
    str, typer.Option(help="balanced (in turn), random, or none, with --num-images.", rich_help_panel=_SETS)
]
Group = Annotated[
    int | None,
    typer.Option(
        help="Images the network is asked about at once; the set depends on it in the last bit.",
        rich_help_panel=_SETS,
    ),
]
Pack = Annotated[bool, typer.Option("--pack/--no-pack", help="Write ADM's .npz of all too.", rich_help_panel=_SETS)]


def is_set_folder(out: Path | None) -> bool:
    """Whether --out asks for a set: a folder, or a name without a suffix."""
    return out is not None and (out.is_dir() or out.suffix == "")


def check_set_options(
    out_dir: Path | None,
    trajectory: Path | None,
    overwrite: bool,
    labels: str | None,
    labels_from: Path | None,
    num_images: int | None,
) -> None:
    """ValueError for options that a set has not, or that contradict each other."""
    if out_dir or trajectory or overwrite:
        raise ValueError("a set of images has no --out-dir, --trajectory or --overwrite; leave them out")
    if labels and (labels_from or num_images):
        raise ValueError("--labels contradicts --labels-from and --num-images; give one of them")


def make_set(
    name: str,
    out: Path,
    choose: Callable[[Pipeline], Sequence[str | int | None] | None],
    num_images: int | None,
    options: dict[str, Any],
    seed: int,
    batch_size: int | None,
    place: tuple[str, str],
    group: int | None,
    make_pack: bool,
) -> None:
    """Runs the call and says what came of it. Exit code 128 + the signal's number for a set that was stopped.

    choose: the label of every image; None leaves all without a class. options: as `call_options` takes them.
    place: device and dtype.
    """
    from dinit.pipelines.launch import launched_processes
    from dinit.pipelines.outputs.sets import GROUP, generate_set

    device, dtype = place
    with launched_processes() as state:
        if device == "auto" and state.num_processes > 1:
            device = str(state.device)
        pipe = load(name, device, dtype)
        options.setdefault("default_sampler", pipe.defaults.get("sampler"))
        labels = choose(pipe)
        planned = call_options(**options)
        count = num_images if labels is None else None
        call = pipe.prepare(labels, num_images=count, seed=seed, batch_size=batch_size, **planned)
        speaks = state.is_main_process
        with _show(enabled=speaks) as show, _signals() as caught:
            made = generate_set(pipe, call, out, group or GROUP, make_pack, show, stop=lambda: bool(caught))
    if speaks:
        _report(made, stopped=bool(caught))
    if caught:
        raise typer.Exit(128 + caught[0])


def labels_of_set(
    pipe: Pipeline, count: int | None, classes: Sequence[str], labels_from: Path | None, order: str, seed: int
) -> list[int | str | None] | None:
    """The label of every image of a set. classes: to take from; none are all. None is without classes."""
    from dinit.pipelines.outputs.set_files import read_labels
    from dinit.pipelines.outputs.sets import class_of

    if labels_from is not None:
        listed = read_labels(labels_from)
        if count is not None and count > len(listed):
            raise ValueError(f"--num-images {count} is more than the {len(listed)} labels of {labels_from}")
        return list(listed[:count])
    assert count is not None, "the caller gives one of the two"
    chosen: Sequence[Any] = classes or range(pipe.backbone.num_classes)
    labels = [class_of(k, chosen, order, seed) for k in range(count)]
    return None if None in labels else list(labels)


def _report(made: MadeSet, stopped: bool) -> None:
    for note in made.notes:
        console.print(f"note: {note}", markup=False)
    if made.complete:
        packed = f" and {made.pack.name}" if made.pack else ""
        console.print(f"{made.count} images in {made.folder}{packed}; {made.made} of them made by this process now")
    elif stopped:
        console.print(f"stopped; the same call goes on with what is missing in {made.folder}")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C end the run after the images in hand: the number of the one that came is in the list."""
    caught: list[int] = []

    def note(number: int, _: Any) -> None:
        if caught:  # asked twice: now
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _show(enabled: bool) -> Iterator[Callable[[Progress], None]]:
    """What shows how far all processes are: a bar on a terminal, a line now and then elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[figures]}")
    with Bar(*columns, console=console, transient=True, disable=not (enabled and console.is_terminal)) as bar:
        task = bar.add_task("images", total=None, figures="")
        spoken = time.monotonic()

        def show(progress: Progress) -> None:
            nonlocal spoken
            figures = f"{progress.per_second:.1f} images/s, {_duration(progress.seconds_left)} left"
            bar.update(task, total=progress.total, completed=progress.done, figures=figures)
            if enabled and not console.is_terminal and time.monotonic() - spoken > _EVERY:
                spoken = time.monotonic()
                console.print(f"{progress.done}/{progress.total} images, {figures}", markup=False, highlight=False)

        yield show


def _duration(seconds: float) -> str:
    """13 s, 4 min, 2 h 05 min."""
    if seconds == float("inf"):
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
