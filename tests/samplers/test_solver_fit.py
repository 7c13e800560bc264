"""The fit of a schedule's numbers: it starts from the schedule itself, and what it finds holds on other noises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dinit.diffusion.continuous import EDM, VP, LinearFlow
from dinit.diffusion.process import Process
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import SAMPLERS
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.grids.times import Times
from dinit.samplers.multistep.adams import ExponentialAB
from dinit.samplers.multistep.exponential_weights import exponential_form, weights
from dinit.samplers.multistep.rules import Corrector, Extrapolate
from dinit.samplers.multistep.unified import Unified
from dinit.samplers.search.fit import Schedule, fit

PROCESSES = [VP(), LinearFlow(), EDM()]


def mixture(process: Process) -> MixtureDenoiser:
    means = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return MixtureDenoiser(process, means, torch.full_like(means, 0.3))


def noise(seed: int, count: int) -> Tensor:
    return torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(process: Process, steps: int) -> tuple[MixtureDenoiser, Unified, Times]:
    model = mixture(process)
    times = LogSNR().times(process, steps, model.t_min, model.t_max)
    return (
        model,
        Unified((Extrapolate("velocity", 3, variable="own"),), "lower-order"),
        Times(tuple(times.tolist())),
    )


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_numbers_read_back_as_the_schedule(process: Process) -> None:
    """But for the last time, which stands a little off t_min so that it can move both ways."""
    model, sampler, grid = problem(process, 6)
    schedule, numbers = Schedule.of(model, sampler.schedule_for(5, True).rules, grid.values)
    again, times = schedule.read(numbers)
    assert len(numbers) == 5 + (0 + 1 + 2 + 3 + 3)
    near = lambda t: float(process.scales(t).log_snr) / 2  # noqa: E731
    assert times.values[0] == grid.values[0]
    for ours, given in zip(times.values[1:], grid.values[1:], strict=True):
        assert near(ours) == pytest.approx(near(given), abs=0.011)
    x = noise(1, 8)
    same = again.sample(model, x, grid=times), sampler.sample(model, x, grid=times)
    assert torch.allclose(*same, rtol=0, atol=5e-12)  # 9e-13: the coefficients are solved for again


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_what_is_fitted_holds_on_other_noises(process: Process) -> None:
    model, sampler, grid = problem(process, 6)
    seen, other = noise(0, 64), noise(1, 64)
    truth = lambda x: ExponentialAB(3, "v").sample(model, x, 100, grid="log-snr")  # noqa: E731
    run = lambda s, g: s.sample(model, seen, grid=g)  # noqa: E731
    fitted, times, error = fit(model, sampler, grid, run, truth(seen), 6)
    rms = lambda s, g: float((s.sample(model, other, grid=g) - truth(other)).square().mean().sqrt())  # noqa: E731
    assert error == pytest.approx(float((run(fitted, times) - truth(seen)).square().mean().sqrt()))
    assert fitted.nfe(6) == 6
    assert rms(fitted, times) < 0.3 * rms(sampler, grid)


def test_differences_are_newtons_terms() -> None:
    process = VP()
    t, s, *old = (process.scales(v) for v in (0.6, 0.45, 0.7, 0.85))
    form, nodes = exponential_form("velocity", "log-snr"), [t, *old]
    plain = [weights(form, process, t, s, nodes[:count])[1] + [0.0] * (3 - count) for count in (1, 2, 3)]
    for factors in ((1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.3, -2.0), (2.5,)):
        a, b = (*factors, 1.0)[:2]
        expected = [w1 + a * (w2 - w1) + b * (w3 - w2) for w1, w2, w3 in zip(*plain, strict=True)]
        _, found = weights(form, process, t, s, nodes, differences=factors)
        assert found == pytest.approx(expected, abs=1e-13)


def test_the_order_that_is_left() -> None:
    def order(*factors: float) -> int:
        return Extrapolate("x0", 4, difference_weights=factors).claimed_order("single-step")

    assert [order(), order(1.0, 1.0, 1.0), order(1.0, 1.0, 0.5), order(1.0, 0.0), order(1.2)] == [4, 4, 3, 2, 1]


def test_a_fitted_sampler_is_rebuilt_from_its_configuration() -> None:
    sampler = Unified(
        (Extrapolate("eps", 3, corrector=Corrector(), difference_weights=(1.5, -0.25)), Extrapolate())
    )
    assert SAMPLERS.create(sampler.to_config()) == sampler


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"difference_weights": (1.0, 1.0, 1.0, 1.0)}, "at most three"),
        ({"difference_weights": (math.nan,)}, "finite"),
    ],
)
def test_refusals(options: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Extrapolate(**options)
