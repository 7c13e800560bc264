"""`dinit generate --dry-run`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import typer

from dinit.cli.console import console
from dinit.cli.options import Opening, torch_device

if TYPE_CHECKING:
    from dinit.pipelines.call import Call
    from dinit.pipelines.generate import Pipeline
    from dinit.pipelines.outputs.dry_run import DryRun


def torch_device_of(opening: Opening, dry_run: bool) -> tuple[str, Opening]:
    """The device of a run, and how its pipeline is opened: for a dry run on the CPU, whatever the device holds.

    Args:
        opening: as it was typed.
        dry_run: whether nothing runs.

    Raises:
        ValueError: torch cannot use the device.
    """
    if not dry_run:
        return opening.device, opening
    return torch_device(opening.device), dataclasses.replace(opening, device="cpu")


def show_dry_run(pipe: Pipeline, call: Call, wanted: Mapping[str, bool], device: str, files: Sequence[str]) -> None:
    """Prints what a call would take. Exit code 1 where it will not fit this machine.

    Args:
        pipe: opened by this process, which has done nothing else.
        call: what would run.
        wanted: the fields of `dinit.pipelines.outputs.dry_run.Wanted`.
        device: where it would run.
        files: that would be written.
    """
    from dinit.pipelines.outputs.dry_run import Wanted, dry_run

    show(dry_run(pipe, call, Wanted(**wanted), device=device, files=files, opened=True))


def show(found: DryRun) -> None:
    """Prints the result of a dry run. Exit code 1 where the run will not fit this machine.

    Args:
        found: the result.
    """
    for line in found.lines():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if not found.fits:
        raise typer.Exit(1)
