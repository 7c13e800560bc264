"""The adaptive solvers: tolerance against error, times it asks at, the batch, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PROCESSES
from dinit.diffusion.continuous import EDM, VE, VP, LinearFlow
from dinit.models.analytic import GaussianDenoiser, MixtureDenoiser
from dinit.samplers.guidance import apply_guidance
from dinit.samplers.guidance.cads import CADS
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.ode.dpm_adaptive import DPMAdaptive
from dinit.samplers.ode.rk45 import DIFFERENCE, DORMAND_PRINCE, FOURTH_ORDER, RK45

F64 = torch.float64


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def ends(process) -> Tensor:
    return torch.tensor([1.0, max(process.t_min, 1e-3)], dtype=F64)


def test_the_tableau() -> None:
    """Rows sum to their node; both weights integrate polynomials to their order; the last stage is the result."""
    c = [0.0, *DORMAND_PRINCE.nodes]
    for row, node in zip(DORMAND_PRINCE.stages, DORMAND_PRINCE.nodes, strict=True):
        assert abs(sum(row) - node) < 1e-14
    for weights, order in ((DORMAND_PRINCE.weights, 5), (FOURTH_ORDER, 4)):
        for k in range(order):
            assert abs(sum(w * x**k for w, x in zip(weights, c, strict=True)) - 1 / (k + 1)) < 1e-14
    assert (*DORMAND_PRINCE.stages[-1], 0) == DORMAND_PRINCE.weights
    assert abs(sum(DIFFERENCE)) < 1e-15


@pytest.mark.parametrize("process", PROCESSES.names())
def test_a_tighter_tolerance_costs_more_and_errs_less(process: str) -> None:
    made = PROCESSES.create(process)
    exact, times = GaussianDenoiser(made, 0.3, 0.5, (1, 2, 2)), ends(made)
    x = randn(4, 1, 2, 2) * made.prior_std(made.scales(1.0))
    end, errors, costs = exact.flow(x, *times), [], []
    for tolerance in (1e-3, 1e-5, 1e-7, 1e-9):
        steps = list(RK45(tolerance, tolerance).iterate(exact, x, grid=times, initial_state=x, end="state"))
        errors.append(float((steps[-1].x_s - end).abs().max()))
        costs.append(steps[-1].nfe)
        assert errors[-1] < 50 * tolerance * max(1.0, float(x.abs().max()) / 10)
    assert errors[-1] < errors[0] / 100
    assert costs == sorted(costs)
    assert costs[-1] > 1.5 * costs[1]


def test_it_asks_inside_its_grid_only_and_says_what_it_cost() -> None:
    asked: list[Tensor] = []

    class Watching(GaussianDenoiser):
        def __call__(self, x_t, t, cond):
            asked.append(t.time)
            return super().__call__(x_t, t, cond)

    model, times = Watching(VE(), 0.3, 0.5, (1, 2, 2)), torch.tensor([1.0, 0.6, 0.1], dtype=F64)
    steps = list(RK45().iterate(model, randn(3, 1, 2, 2), grid=times, end="state"))
    assert steps[-1].nfe == len(asked) > RK45().claims().nfe_per_step
    first = asked[: steps[0].nfe]
    assert min(float(t.min()) for t in first) == 0.6
    assert max(float(t.max()) for t in asked) == 1.0
    assert min(float(t.min()) for t in asked) == 0.1
    assert max(float(t.max()) for t in asked[steps[0].nfe :]) == 0.6


@pytest.mark.parametrize("process", [VP(), LinearFlow(), EDM()], ids=str)
def test_an_image_does_not_depend_on_its_batch(process) -> None:
    """To rounding, which CADS's means bring in, with samples beside it that take steps of other sizes."""
    means = torch.tensor([-2.0, 0.1, 2.0], dtype=F64).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    model = MixtureDenoiser(process, means, torch.full_like(means, 1e-4), None, torch.tensor([0, 0, 1]))
    guided = apply_guidance(model, [CFG(2.0), CADS(0.3, 0.9)])
    x = randn(3, 1, 2, 2)
    whole = RK45().sample(guided, x, 4, labels=[0, 1, 2], seed=[5, 6, 7])
    for i in range(3):
        alone = RK45().sample(guided, x[i : i + 1], 4, labels=[i], seed=[5 + i])
        assert torch.allclose(whole[i : i + 1], alone, rtol=0, atol=1e-8)


def test_grid_times_do_not_stop_its_stride() -> None:
    """The size to try is carried over: a grid of 20 close times costs one trial each, not a search each."""
    exact, x = GaussianDenoiser(LinearFlow(), 0.3, 0.5, (1, 2, 2)), randn(2, 1, 2, 2)
    steps = list(RK45(1e-6, 1e-6).iterate(exact, x, grid=torch.linspace(1, 0.5, 41, dtype=F64), end="state"))
    assert steps[-1].nfe == 40 * 7


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: RK45(rtol=0.0), ValueError, "must be positive"),
        (
            lambda m, x: RK45().sample(m, x, grid=torch.tensor([1.0, 0.0]), end="state"),
            ValueError,
            "infinite",
        ),
        (
            lambda m, x: RK45(1e-15, 1e-15).sample(m, x.float(), 3),
            RuntimeError,
            "loosen rtol and atol, run in float64",
        ),
        (lambda m, x: RK45().sample(m, x * torch.nan, 3), RuntimeError, "finite numbers"),
    ],
)
def test_refusals(call, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinit.samplers.ode.rk45.MOST_TRIALS", 100)
    with pytest.raises(error, match=message):
        call(GaussianDenoiser(VP(), 0.3, 0.5, (1, 2, 2)), randn(2, 1, 2, 2))


# --- dpm-adaptive ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["edm", "flow", "vp"])
@pytest.mark.parametrize("solver", [12, 23])
def test_dpm_adaptive_meets_its_tolerance(solver, process: str) -> None:
    """Tighter costs more and errs less; from alpha = 0 it starts with a step of first order, which is small."""
    made = PROCESSES.create(process)
    exact, times = GaussianDenoiser(made, 0.3, 0.5, (1, 2, 2)), ends(made)
    x = randn(4, 1, 2, 2) * made.prior_std(made.scales(1.0))
    end, errors, costs = exact.flow(x, *times), [], []
    for tolerance in (1e-2, 1e-3, 1e-4):
        sampler = DPMAdaptive(solver, tolerance, tolerance)
        steps = list(sampler.iterate(exact, x, grid=times, initial_state=x, end="state"))
        errors.append(float((steps[-1].x_s - end).abs().max()))
        costs.append(steps[-1].nfe)
    assert errors[-1] < min(2e-3, errors[0] / 5)
    assert costs[0] < costs[1] < costs[2]


def test_dpm_adaptive_asks_inside_its_grid_and_once_for_a_start() -> None:
    asked: list[tuple[float, float]] = []

    class Watching(GaussianDenoiser):
        def __call__(self, x_t, t, cond):
            k = self.scales(t)
            asked.append((float(k.time.min()), float(x_t.flatten()[0])))
            return super().__call__(x_t, k, cond)

    model, times = Watching(VE(), 0.3, 0.05, (1, 2, 2)), torch.tensor([1.0, 0.6, 0.1], dtype=F64)
    for size in (0.05, 30.0):  # the first trial of a whole interval is refused, and its start not asked for again
        asked.clear()
        steps = list(DPMAdaptive(first=size).iterate(model, randn(1, 1, 2, 2), grid=times, end="state"))
        assert steps[-1].nfe == len(asked) == len(set(asked))
        assert 0.1 < min(t for t, _ in asked) <= max(t for t, _ in asked) <= 1.0
        assert min(t for t, _ in asked[: steps[0].nfe]) > 0.6


def test_dpm_adaptive_batch_independence() -> None:
    means = torch.tensor([-2.0, 0.1, 2.0], dtype=F64).reshape(3, 1, 1, 1).expand(3, 1, 2, 2)
    model = MixtureDenoiser(LinearFlow(), means, torch.full_like(means, 1e-4), None, torch.tensor([0, 0, 1]))
    x, sampler = randn(3, 1, 2, 2), DPMAdaptive(proportional=0.3, integral=0.5, derivative=0.1)
    whole = sampler.sample(model, x, 4, labels=[0, 1, 2])
    for i in range(3):
        alone = sampler.sample(model, x[i : i + 1], 4, labels=[i])
        assert torch.allclose(whole[i : i + 1], alone, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, x: DPMAdaptive(13), ValueError, "12 or 23"),  # type: ignore[arg-type]
        (lambda m, x: DPMAdaptive(rtol=0.0), ValueError, "rtol must be positive"),
        (lambda m, x: DPMAdaptive(integral=0.0), ValueError, "more than 0"),
        (lambda m, x: DPMAdaptive(accept=1.0), ValueError, "accept"),
        (
            lambda m, x: DPMAdaptive().sample(m, x, grid=torch.tensor([1.0, 0.0]), end="state"),
            ValueError,
            "infinite at sigma = 0",
        ),
        (lambda m, x: DPMAdaptive().sample(m, x * torch.nan, 3), RuntimeError, "finite numbers"),
    ],
)
def test_dpm_adaptive_refusals(call, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(GaussianDenoiser(VP(), 0.3, 0.5, (1, 2, 2)), randn(2, 1, 2, 2))
