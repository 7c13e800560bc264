"""Runs of every solver on a problem of benchmarks/solvers.py, and their report."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path

import peers_azula
import peers_diffusers
import peers_kdiffusion
import torch
from peer_network import Run, Wanted
from solvers_ours import on_levels, ours, searched
from solvers_problems import Problem
from solvers_tables import NAMESAKES, SEARCHED, Errors, Score, plot, section, targets

from dinit.samplers.search.solver import SolverSearch

NFES = (5, 8, 10, 15, 20, 50)
TO_SEARCH = (5, 8, 10, 15, 20)
LONG = 20
PEERS = (peers_diffusers, peers_azula, peers_kdiffusion)
MISSING = [name for name, peer in (("azula", peers_azula), ("k-diffusion", peers_kdiffusion)) if not peer.INSTALLED]


def any_of_them(name: str, grid: str) -> bool:
    return True


def among_the_best(wanted: Wanted, ranks: Mapping[str, list[Score]], name: str, grid: str) -> bool:
    """Whether it is one of the solver's four best grids, where it has run on any."""
    scores = sorted(score for score in ranks.get(name, []) if math.isfinite(score.rms))[:4]
    return wanted(name, grid) and (not scores or grid in [score.grid for score in scores])


def measure(
    problem: Problem,
    nfes: Sequence[int] = NFES,
    search: SolverSearch | None = None,
    to_search: Sequence[int] = TO_SEARCH,
    wanted: Wanted = any_of_them,
) -> Errors:
    """The error of each solver on its best grid, and of namesakes on the peer's."""
    errors = Errors()
    ranks: dict[str, list[Score]] = {}
    for nfe in nfes:
        best: dict[str, Run] = {}
        # Long runs, which cost as much as all others: on the grids that were best before.
        these = partial(among_the_best, wanted, ranks) if nfe > LONG else wanted
        ranks = {}
        for run in chain.from_iterable(p.peers(problem.model, problem.start, nfe, these) for p in PEERS):
            errors.peers.add(run.name)
            score = Score.of(run.end, problem.exact, run.grid)
            ranks.setdefault(run.name, []).append(score)
            if errors.enter(run.name, nfe, score):
                best[run.name] = run
        for name, grid, end in ours(problem, nfe, these):
            score = Score.of(end, problem.exact, grid)
            ranks.setdefault(name, []).append(score)
            errors.enter(name, nfe, score)
        for name, other in ((name, other) for name, others in NAMESAKES.items() for other in others):
            run = best.get(other)
            end = on_levels(problem, name, nfe, run.levels, run.denoised) if run and run.levels else None
            if run and end is not None:
                errors.same.setdefault((name, other), {})[nfe] = Score.of(end, problem.exact, run.grid)
        if search and nfe in to_search:
            errors.enter(SEARCHED, nfe, Score.of(searched(problem, nfe, search), problem.exact, SEARCHED))
    errors.best = {name: of for name, of in errors.best.items() if of}
    return errors


def report(every: dict[str, Errors], lead: Sequence[str], out: Path) -> None:
    """The tables and the plots, in one folder."""
    parts: list[str] = []
    for title, errors in every.items():
        picture = out.with_name(f"{out.stem}_{title}.png")
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
