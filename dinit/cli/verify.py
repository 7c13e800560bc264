"""`dinit verify`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dinit._deprecate import warn_once
from dinit.cli.checks import check_entry
from dinit.cli.completion import entries
from dinit.cli.console import console
from dinit.files import write_atomically
from dinit.progress import Progress
from dinit.targets import check_target

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
Posterior = Annotated[
    bool,
    typer.Option(
        "--posterior",
        help="Compare every posterior method with the exact posterior of Gaussian mixtures, by operator and noise.",
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        metavar="NAME",
        help="With --posterior, this method only, as mmps:iterations=16. Can be repeated. Default: all.",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="With --posterior, write the table as Markdown. Default: no file."),
]
Quick = Annotated[bool, typer.Option("--quick", help="The default, from before it was one.", hidden=True)]


def verify(
    sampler: Samplers = None,
    process: Processes = None,
    posterior: Posterior = False,
    method: Methods = None,
    full: Full = False,
    quick: Quick = False,
    out: Out = None,
) -> None:
    """Check every sampler against closed forms on this machine: order, error, distribution.

    The quick check uses fewer steps, samples and time grids than --full. All cores are used. Exit code 1 where a
    check failed.

    With --posterior the table shows how far the samples of every posterior method are from the exact posterior:
    bias, variance, weights of modes, sliced Wasserstein distance, calibration. --sampler names those that the
    guidances run under (default: auto and ddpm), --process the noise (default: edm). Exit code 1 where the exact
    posterior's own denoiser under auto does not give the posterior.

    Examples:
        dinit verify
        dinit verify --sampler ddim --sampler heun --process flow --full
        dinit verify --posterior --method mmps --method dps --out table.md
    """
    if quick:
        if full:
            raise ValueError("--quick and --full contradict each other; the quick check is the default")
        warn_once("--quick", "`dinit verify` alone, which is quick", "0.1")
    for name in sampler or ():
        check_entry("samplers", name)
    for name in process or ():
        check_entry("processes", name)
    if posterior:
        if out is not None:
            check_target(out, overwrite=True)
        _verify_posterior(sampler, process, method, full, out)
        return
    if method or out:
        raise ValueError("--method and --out belong to --posterior")
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


def _verify_posterior(
    sampler: list[str] | None, process: list[str] | None, method: list[str] | None, full: bool, out: Path | None
) -> None:
    from dinit.posterior_conformance import verify_posterior

    with Progress("verify", None, "methods by operator and noise", speed=None) as progress:
        report = verify_posterior(
            method or None,
            sampler or None,
            process or None,
            not full,
            _cores(),
            lambda done, total: progress.update(done, total=total),
        )
    console.print(report.table())
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, (report.markdown() + "\n").encode())
    diverged = sum(one.note.startswith("diverged") for one in report.outcomes)
    refused = sum(one.note.startswith("refused") for one in report.outcomes)
    console.print(
        f"{len(report.outcomes)} runs, {diverged} diverged, {refused} refused with a reason, "
        f"{len(report.failures())} of the exact posterior's denoiser failed",
        highlight=False,
        soft_wrap=True,
    )
    if not report.passed:
        raise typer.Exit(1)


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
