"""Edges that every way into a run shares: the last time, defaults inside functions, metrics without a value."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, WrappedDenoiser
from dinit.diffusion.continuous import VP
from dinit.likelihood.bound import variational_bound
from dinit.likelihood.ode import log_likelihood
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers import invert
from dinit.samplers.comparison import compare
from dinit.samplers.multistep.ode_variables import TIME
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.search.timesteps import Evolution, search_timesteps
from dinit.training.averaging.combination import Search, search

F64 = torch.float64
SHORT = GaussianDenoiser(VP(), 0.3, 0.5, (1, 2, 2), t_max=0.9)
IMAGES = torch.linspace(-1, 1, 8, dtype=F64).reshape(2, 1, 2, 2)


def sampled(**given: Any) -> Any:
    return DDIM().sample(SHORT, IMAGES, **given)


def inverted(**given: Any) -> Any:
    return invert("ddim", SHORT, IMAGES, **given).x


def compared(**given: Any) -> Any:
    return compare(SHORT, IMAGES, None, ["ddim"], **given)["ddim"]


def measured(**given: Any) -> Any:
    return log_likelihood(SHORT, IMAGES, trace="exact", **given).log_prob


def bounded(**given: Any) -> Any:
    return variational_bound(SHORT, IMAGES, **given).total


WAYS = [sampled, inverted, compared, measured, bounded]


@pytest.mark.parametrize("run", WAYS)
def test_times_up_to_the_denoisers_own_last_are_taken_and_none_beyond(run: Any) -> None:
    assert bool(run(grid=torch.tensor([0.9, 0.5, 0.1], dtype=F64)).isfinite().all())
    for times, message in (
        ([0.9001, 0.5, 0.1], r"lie in \[0, 0.9\]"),
        ([1.0, 0.5, 0.1], r"lie in \[0, 0.9\]"),
        ([0.9, 0.5, -1e-9], r"lie in \[0, 0.9\]"),
        ([0.9, 0.5, 0.5], "decreasing"),
        ([0.1, 0.5, 0.9], "decreasing"),
    ):
        with pytest.raises(ValueError, match=message):
            run(grid=torch.tensor(times, dtype=F64))


@pytest.mark.parametrize("run", WAYS)
def test_a_number_of_steps_is_that_of_the_times_that_are_given(run: Any) -> None:
    times = torch.tensor([0.9, 0.5, 0.1], dtype=F64)
    assert torch.equal(run(grid=times, steps=3), run(grid=times))
    for steps in (1, 2, 4, 30):
        with pytest.raises(ValueError, match="contradicts a grid of 3 times"):
            run(grid=times, steps=steps)


def test_a_likelihood_takes_100_times_where_nothing_is_said() -> None:
    short = log_likelihood(SHORT, IMAGES, trace="exact", method="euler")
    assert short.nfe == 100  # 99 steps, and the centre of the prior
    assert torch.equal(short.log_prob, log_likelihood(SHORT, IMAGES, 100, trace="exact", method="euler").log_prob)


def first_is_not_a_number() -> tuple[list[float], Any]:
    """A metric without a value for its best-looking argument, and the values that it gave."""
    given: list[float] = []

    def metric(x: Tensor) -> float:
        value = math.nan if not given else float(x.double().square().mean())
        given.append(value)
        return value

    return given, metric


def by_times() -> tuple[list[float], float]:
    given, metric = first_is_not_a_number()
    found = search_timesteps(
        SHORT, "ddim", 3, metric, noise=IMAGES, evolution=Evolution(population=5, parents=2, generations=2)
    )
    return given, float(DDIM().sample(SHORT, IMAGES, grid=found).square().mean())


def by_weights() -> tuple[list[float], float]:
    given, metric = first_is_not_a_number()
    return given, search(metric, 3, Search(evaluations=8, population=4)).score


@pytest.mark.parametrize("way", [by_times, by_weights])
def test_a_search_never_settles_where_its_metric_is_not_a_number(way: Any) -> None:
    given, found = way()
    assert math.isnan(given[0])
    assert found == pytest.approx(min(given[1:]), rel=1e-12)


class Watched(WrappedDenoiser):
    """Keeps the numbers of step and steps that every evaluation is given."""

    def __init__(self, inner: Denoiser) -> None:
        super().__init__(inner)
        self.numbers: list[tuple[int, int | None]] = []

    def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
        self.numbers.append((cond.run.step, cond.run.steps))
        return super().__call__(x_t, t, cond)


@pytest.mark.parametrize("run", WAYS)
def test_every_way_tells_a_guidance_how_many_steps_there_are(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(SHORT)
    monkeypatch.setitem(globals(), "SHORT", watched)
    run(grid=torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1], dtype=F64))
    assert {steps for _, steps in watched.numbers} == {4 if run is inverted else 5}
    if run not in (measured, inverted):  # the first has no numbers, and the second those of the way down
        assert {step for step, _ in watched.numbers} == set(range(5))


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
def test_a_velocity_that_is_infinite_at_an_evaluated_time_is_refused(method: Any) -> None:
    at_data = torch.tensor([0.9, 0.5, 0.0], dtype=F64)  # where the velocity of VP is infinite
    with pytest.raises(ValueError, match="is infinite at a time of the grid"):
        measured(grid=at_data, variable=TIME, method=method)
    assert bool(measured(grid=torch.tensor([0.9, 0.5, 0.1]), variable=TIME, method=method).isfinite().all())
