"""Runs of every solver on a problem, and their report: what benchmarks/solvers.py does for each problem."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import peers_azula
import peers_diffusers
import peers_kdiffusion
import torch
from peer_network import Run, Wanted
from solvers_ours import on_levels, ours, searched
from solvers_problems import Problem, mixture
from solvers_tables import NAMESAKES, SEARCHED, Errors, Score, plot, section, targets

NFES = (5, 8, 10, 15, 20, 50)
TO_SEARCH = (5, 8, 10, 15, 20)
PEERS = (peers_diffusers, peers_azula, peers_kdiffusion)
MISSING = [name for name, peer in (("azula", peers_azula), ("k-diffusion", peers_kdiffusion)) if not peer.INSTALLED]


def any_of_them(name: str, grid: str) -> bool:
    return True


def measure(
    problem: Problem, nfes: Sequence[int] = NFES, search: bool = False, wanted: Wanted = any_of_them
) -> Errors:
    """The error of each solver on its best grid, and of namesakes on the peer's."""
    errors = Errors()
    for nfe in nfes:
        best: dict[str, Run] = {}
        for run in chain.from_iterable(p.peers(problem.model, problem.start, nfe, wanted) for p in PEERS):
            errors.peers.add(run.name)
            if errors.enter(run.name, nfe, Score.of(run.end, problem.exact, run.grid)):
                best[run.name] = run
        for name, grid, end in ours(problem, nfe, wanted):
            errors.enter(name, nfe, Score.of(end, problem.exact, grid))
        for name, other in ((name, other) for name, others in NAMESAKES.items() for other in others):
            run = best.get(other)
            end = on_levels(problem, name, nfe, run.levels, run.denoised) if run and run.levels else None
            if run and end is not None:
                errors.same.setdefault((name, other), {})[nfe] = Score.of(end, problem.exact, run.grid)
        if search and nfe in TO_SEARCH:
            end = searched(problem, mixture(problem.model.process), nfe, 2)
            errors.enter(SEARCHED, nfe, Score.of(end, problem.exact, SEARCHED))
    errors.best = {name: of for name, of in errors.best.items() if of}
    return errors


def report(every: dict[str, Errors], lead: Sequence[str], out: Path) -> None:
    """The tables and, beside them, the plots."""
    parts: list[str] = []
    for title, errors in every.items():
        picture = out.with_name(f"solvers_{title}.png")
        plot(title, errors, picture)
        parts += section(title, errors, picture.name)
    missing = [f"Not measured, as not installed: {', '.join(MISSING)}.", ""] if MISSING else []
    rows = ["# Error at few network evaluations", "", *lead, "", *missing, *targets(every), "", *parts]
    out.write_text("\n".join(rows).rstrip() + "\n", encoding="utf-8")


def quiet() -> None:
    """One thread, no gradients, and no warnings of grids that end too noisy."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
