"""`dinit verify`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from dinit._deprecate import warn_once
from dinit.cli.checks import check_entry
from dinit.cli.completion import entries
from dinit.cli.console import console
from dinit.progress import Progress

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
    bool, typer.Option("--full", help="All steps, samples and time grids: many times as long, with tighter bounds.")
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

    with Progress("verify", None, "pairs of sampler and process", speed=None) as progress:
        report = run(
            sampler or None,
            not full,
            process or None,
            _cores(),
            lambda done, total: progress.update(done, total=total),
        )
    failed = report.failures()
    console.print(failed.table() if failed.checks and not sampler else report.table())
    refused = f", {report.count('refused')} refused with a reason" if report.count("refused") else ""
    pairs = len({(one.sampler, one.process) for one in report.checks})
    console.print(
        f"{report.count('pass')} of {len(report.checks)} checks passed{refused}, {report.count('FAIL')} failed: "
        f"{pairs} pair{'' if pairs == 1 else 's'} of sampler and process",
        highlight=False,
        soft_wrap=True,
    )
    if not report.passed:
        raise typer.Exit(1)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
