"""The search for schedules: better than its starts, seeded, cached, and honest on noises it has not seen."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dinit.diffusion.continuous import VP, LinearFlow
from dinit.diffusion.process import Process
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers.multistep.adams import ExponentialAB
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.search.solver import Found, SolverSearch, moved

SEARCH = SolverSearch(population=8, generations=6, fit=0, reference_steps=60)


def mixture(process: Process) -> MixtureDenoiser:
    means = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MixtureDenoiser(process, means, torch.full_like(means, 0.05))


def noise(seed: int, count: int = 16) -> Tensor:
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("process", [VP(), LinearFlow()], ids=str)
def test_what_is_found_is_better_on_other_noises(process: Process) -> None:
    model, other = mixture(process), noise(1, 64)
    found = SEARCH.find(model, 6, noise(0, 64))
    assert found.error < found.start_error
    truth = ExponentialAB(3, "v").sample(model, other, 300, grid="log-snr")
    ours = found.sampler.sample(model, other, grid=found.grid)
    rms = lambda x: float((x - truth).square().mean().sqrt())  # noqa: E731
    assert found.sampler.nfe(6) == 6
    theirs = min(rms(DPMpp2M().sample(model, other, 6, grid=grid)) for grid in ("log-snr", "karras", "uniform"))
    assert rms(ours) < theirs


def test_the_same_seed_finds_the_same() -> None:
    assert SEARCH.find(mixture(VP()), 4, noise(0)) == SEARCH.find(mixture(VP()), 4, noise(0))


def test_results_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = SolverSearch(2, 1, fit=1, reference_steps=10, cache=tmp_path / "deep")
    model = mixture(VP())
    found = search.find(model, 4, noise(0), key="mixture")
    (file,) = (tmp_path / "deep").iterdir()
    assert Found.from_config(json.loads(file.read_text())) == found
    monkeypatch.setattr(SolverSearch, "_search", lambda *a: pytest.fail("it was kept"))
    assert search.find(model, 4, noise(0), key="mixture") == found


@pytest.mark.parametrize("changed", ["nfe", "noise", "key", "process"])
def test_another_problem_is_searched_anew(changed: str, tmp_path: Path) -> None:
    search = SolverSearch(2, 0, fit=0, reference_steps=10, cache=tmp_path)
    search.find(mixture(VP()), 4, noise(0), key="a")
    search.find(
        mixture(LinearFlow() if changed == "process" else VP()),
        5 if changed == "nfe" else 4,
        noise(2 if changed == "noise" else 0),
        key="b" if changed == "key" else "a",
    )
    assert len(list(tmp_path.iterdir())) == 2


def test_moved_times_keep_their_order_and_ends() -> None:
    times = (1.0, 0.6, 0.2, 0.05, 0.001)
    for seed in range(100):
        found = moved(times, 0.9, random.Random(seed))
        assert (found[0], found[-1]) == (1.0, 0.001)
        assert all(a > b for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SEARCH.find(mixture(VP()), 1, noise(0)), "at least 2"),
        (lambda: SolverSearch(population=1), "at least 2, got 1"),
        (lambda: SolverSearch(fit=-1), "fit must be at least 0, got -1"),
        (lambda: SolverSearch(cache="x").find(mixture(VP()), 4, noise(0)), "needs a key"),
    ],
)
def test_refusals(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
