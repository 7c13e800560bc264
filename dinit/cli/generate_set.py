"""`dinit generate` into a folder: large sets of images, by any number of processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dinit.cli.console import console
from dinit.cli.generate_dry_run import show, torch_device_of
from dinit.cli.labels import ImageOptions
from dinit.cli.options import CallFlags, Opening
from dinit.progress import Progress

if TYPE_CHECKING:
    from dinit.pipelines.outputs.sets import MadeSet

_SETS = "Sets of images (--out FOLDER)"

LabelsFrom = Annotated[
    Path | None,
    typer.Option(
        help="In place of --classes: file with one label per image: .npy, .npz (arr_1) or lines of text.",
        rich_help_panel=_SETS,
    ),
]
ClassOrder = Annotated[
    str,
    typer.Option(
        help="With --num-images: balanced takes the classes in turn, random draws them, none is unconditional.",
        rich_help_panel=_SETS,
    ),
]
Group = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Images that the network evaluates together; their last bits depend on it. Default: 64.",
        rich_help_panel=_SETS,
    ),
]
Pack = Annotated[
    bool,
    typer.Option("--pack/--no-pack", help="Also write all images as one .npz, as ADM does.", rich_help_panel=_SETS),
]


def is_set_folder(out: Path | None) -> bool:
    """Whether --out is the folder of a set: a folder, or a name without a suffix."""
    return out is not None and (out.is_dir() or out.suffix == "")


def generate_into_folder(
    opening: Opening,
    out: Path,
    images: ImageOptions,
    flags: CallFlags,
    group: int | None,
    make_pack: bool,
    dry_run: bool = False,
) -> None:
    """Generates a set and reports it. Exit code 128 + the signal's number for a set that was stopped.

    Args:
        opening: the pipeline and where it runs; 'auto' is each process's own device.
        out: the set's folder.
        images: the labels.
        flags: the call.
        group: images that the network evaluates together; None is the usual number.
        make_pack: whether to write the .npz of all images.
        dry_run: whether only what would be made is printed.
    """
    from dinit.pipelines.launch import launched_processes
    from dinit.pipelines.outputs.set_files import present
    from dinit.pipelines.outputs.sets import GROUP, generate_set

    if dry_run:
        _show_dry_run(opening, out, images, flags, group or GROUP, make_pack)
        return
    with launched_processes() as state:
        if opening.device == "auto" and state.num_processes > 1:
            opening = replace(opening, device=str(state.device))
        pipe = opening.open()
        labels = images.of_set(pipe, flags.seed)
        call = pipe.prepare(labels, seed=flags.seed, **flags.options(pipe.defaults.get("sampler")))
        is_main, there = state.is_main_process, len(present(out, len(call.labels)))
        bar = Progress("generate", len(call.labels), "images", start=there, enabled=is_main)
        with bar, _signals() as caught:
            made = generate_set(
                pipe,
                call,
                out,
                group or GROUP,
                make_pack,
                lambda progress: bar.update(progress.done),
                stop=lambda: bool(caught),
            )
    if is_main:
        _report(made, stopped=bool(caught))
    if caught:
        raise typer.Exit(128 + caught[0])


def _show_dry_run(
    opening: Opening, out: Path, images: ImageOptions, flags: CallFlags, group: int, make_pack: bool
) -> None:
    """Prints what a set would take: its groups are made one after another, each with `group` images."""
    from dinit.pipelines.outputs.dry_run import dry_run
    from dinit.pipelines.outputs.sets import check_set, first_group

    device, opening = torch_device_of(opening, dry_run=True)
    pipe = opening.open()
    options = flags.options(pipe.defaults.get("sampler"))
    call = pipe.prepare(images.of_set(pipe, flags.seed), seed=flags.seed, **options)
    there = check_set(pipe, call, out, group)
    count = len(call.labels)
    files = [f"{count - there:,} PNGs and manifest.json in {out}", *(["a .npz of all"] if make_pack else [])]
    found = dry_run(pipe, first_group(call, group), device=device, files=files, opened=True)
    classes = len({label for label in call.labels if label is not None})
    show(replace(found, images=count, classes=classes, batches=-(-count // group)))
    if there:
        console.print(f"{there:,} of the images are there already")


def _report(made: MadeSet, stopped: bool) -> None:
    for note in made.notes:
        console.print(f"note: {note}", markup=False)
    if made.complete:
        packed = f" and {made.pack.name}" if made.pack else ""
        console.print(f"{made.count} images in {made.folder}{packed}; {made.made} of them made by this process now")
    elif stopped:
        console.print(f"stopped; the same call makes what is missing in {made.folder}")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """SIGTERM and Ctrl-C end the run after the current batch; the signal's number is then in the list."""
    caught: list[int] = []

    def note(number: int, _: Any) -> None:
        if caught:  # the second signal ends at once
            raise KeyboardInterrupt
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
