"""`dinit verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from dinit.cli.console import console

Samplers = Annotated[
    list[str] | None,
    typer.Option("--sampler", help="Check this sampler only. Can be repeated.", show_default=False),
]
Processes = Annotated[
    list[str] | None,
    typer.Option("--process", help="Check on this noise process only. Can be repeated.", show_default=False),
]
Quick = Annotated[bool, typer.Option("--quick", help="Use fewer steps and samples, and wider tolerances.")]


def verify(sampler: Samplers = None, process: Processes = None, quick: Quick = False) -> None:
    """Check every sampler against closed forms on this machine: order, error, distribution."""
    from dinit.conformance import verify as run

    report = run(sampler or None, quick, process or None)
    console.print(report.table())
    if not report.passed:
        raise typer.Exit(1)
