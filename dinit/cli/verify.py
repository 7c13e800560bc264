"""`dinit verify`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from dinit._deprecate import warn_once
from dinit.cli.checks import check_entry
from dinit.cli.completion import entries
from dinit.cli.console import console, errors

_EVERY = 10.0  # seconds between lines where no bar can be drawn

Samplers = Annotated[
    list[str] | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help="Check this sampler only. Can be repeated. Default: all.",
        autocompletion=entries("samplers"),
    ),
]
Processes = Annotated[
    list[str] | None,
    typer.Option(
        "--process",
        metavar="NAME",
        help="Check on this noise process only. Can be repeated. Default: all.",
        autocompletion=entries("processes"),
    ),
]
Full = Annotated[
    bool, typer.Option("--full", help="All steps, samples and time grids: ten times as long, with tighter bounds.")
]
Quick = Annotated[bool, typer.Option("--quick", help="The default, from before it was one.", hidden=True)]


def verify(sampler: Samplers = None, process: Processes = None, full: Full = False, quick: Quick = False) -> None:
    """Check every sampler against closed forms on this machine: order, error, distribution.

    The quick check uses fewer steps, samples and time grids than --full. All cores are used. Exit code 1 where a
    check failed.

    Examples:
        dinit verify
        dinit verify --sampler ddim --sampler heun --process flow --full
    """
    if quick:
        if full:
            raise ValueError("--quick and --full contradict each other; the quick check is the default")
        warn_once("--quick", "`dinit verify` alone, which is quick", "0.1")
    for name in sampler or ():
        check_entry("samplers", name)
    for name in process or ():
        check_entry("processes", name)
    from dinit.conformance import verify as run

    with _shown() as show:
        report = run(sampler or None, not full, process or None, _cores(), show)
    failed = report.failures()
    console.print(failed.table() if failed.checks and not sampler else report.table())
    refused = f", {report.count('refused')} refused with a reason" if report.count("refused") else ""
    pairs = len({(one.sampler, one.process) for one in report.checks})
    console.print(
        f"{report.count('pass')} of {len(report.checks)} checks passed{refused}, {report.count('FAIL')} failed: "
        f"{pairs} pairs of sampler and process",
        highlight=False,
        soft_wrap=True,
    )
    if not report.passed:
        raise typer.Exit(1)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _shown() -> Iterator[Callable[[int, int], None]]:
    """What shows how far the checks are: a bar on a terminal, a line at intervals elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("checks"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("checks", total=None)
        began = printed = time.monotonic()

        def show(done: int, total: int) -> None:
            nonlocal printed
            bar.update(task, total=total, completed=done)
            now = time.monotonic()
            if not errors.is_terminal and now - printed > _EVERY:
                printed = now
                left = (now - began) / done * (total - done)
                errors.print(f"{done}/{total} pairs checked, about {left:.0f} s left", highlight=False)

        yield show
