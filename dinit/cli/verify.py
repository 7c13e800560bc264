"""`dinit verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from dinit.cli.console import console

Samplers = Annotated[
    list[str] | None, typer.Option("--sampler", help="Only this one; may be repeated.", show_default=False)
]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer steps and samples, wider tolerances.")]


def verify(sampler: Samplers = None, quick: Quick = False) -> None:
    """Check every sampler against closed forms on this machine: order, error, distribution."""
    from dinit.conformance import verify as run
    from dinit.samplers import SAMPLERS

    for name in sampler or []:
        SAMPLERS[name]  # an unknown name is told before the work begins
    report = run(sampler or None, quick)
    console.print(report.table())
    if not report.passed:
        raise typer.Exit(1)
