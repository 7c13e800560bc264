"""Every solver against closed forms: order of convergence, distribution of samples, identities between solvers."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PROCESSES, Condition, Denoised, Process, Scales
from dinit.diffusion.continuous import EDM, GVP, VE, VP, LinearFlow, SubVP
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import GaussianDenoiser, MixtureDenoiser
from dinit.samplers import SAMPLERS, Sampler
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Euler, Heun
from dinit.samplers.ode.flow import FlowEuler
from dinit.samplers.sde.ddpm import DDPM
from dinit.samplers.sde.euler_maruyama import EulerMaruyama
from dinit.samplers.sde.predictor_corrector import PredictorCorrector, langevin_step_size

DETERMINISTIC = [DDIM(), Euler(), Heun(), DPMpp2M(), DPMpp2M("heun"), DPMpp2M(order=1), FlowEuler()]
STOCHASTIC = [
    DDIM(1.0),
    DDPM(),
    DDPM("fixed-large"),
    EulerMaruyama(),
    PredictorCorrector(),
    PredictorCorrector("ancestral", snr=0.1),
    PredictorCorrector("euler-maruyama", "none"),
]
RD = PredictorCorrector("reverse-diffusion", "none")
F64 = torch.float64


class Draws:
    """Standard normal draws for many images at once, where the cost of one generator per image would show."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        # Float64 draws take three times as long.
        return torch.randn(like.shape, generator=self.generator).to(like.dtype)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mixture(process: Process) -> MixtureDenoiser:
    """Two overlapping components in two dimensions, weights 0.3 and 0.7."""
    means = torch.tensor([[-0.6, 0.5], [0.6, -0.2]], dtype=F64).reshape(2, 1, 1, 2)
    variances = torch.tensor([[0.04, 0.09], [0.09, 0.04]], dtype=F64).reshape(2, 1, 1, 2)
    return MixtureDenoiser(process, means, variances, torch.tensor([0.3, 0.7]))


# --- order -------------------------------------------------------------------------------------------------------


def slope(errors: dict[int, float]) -> float:
    """The order that a least-squares line through log error over log steps shows."""
    n, e = (torch.tensor(list(v), dtype=F64).log() for v in (errors.keys(), errors.values()))
    n, e = n - n.mean(), e - e.mean()
    return -float((n @ e) / (n @ n))


def walk(sampler: Sampler, model: MixtureDenoiser, x: Tensor, times: Tensor) -> Tensor:
    return sampler.sample(model, x, grid=times, initial_state=x, end="state")


def span(process: Process, steps: int, bent: bool = False) -> Tensor:
    """Times from log-SNR -3 to 3, evenly in it or (bent) with steps that grow sixfold along the way."""
    u = torch.arange(steps + 1, dtype=F64) / steps
    return process.time_of(6 * (u * (1 + 5 * u) / 6 if bent else u) - 3)


@pytest.mark.parametrize("process", PROCESSES.names())
@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=repr)
def test_order_on_gaussian_data(sampler: Sampler, process: str) -> None:
    exact = GaussianDenoiser(PROCESSES.create(process), 0.3, 0.5, (1, 2, 2))
    x = randn(4, 1, 2, 2) * exact.process.scales(span(exact.process, 1)[0]).sigma
    for bent in (False, True):
        errors = {n: eighths(sampler, exact, x, span(exact.process, n, bent)) for n in (64, 96, 128, 192)}
        assert abs(slope(errors) - sampler.claims().order) < 0.3, errors


def eighths(sampler: Sampler, exact: GaussianDenoiser, x: Tensor, times: Tensor) -> float:
    """The largest error at any eighth of the way: at a single time, terms of it may happen to cancel."""
    steps = list(sampler.iterate(exact, x, grid=times, initial_state=x, end="state"))
    every = len(steps) // 8
    marks = zip(steps[every - 1 :: every], times[every::every], strict=True)
    return max(float((step.x_s - exact.flow(x, times[0], s)).abs().max()) for step, s in marks)


@cache
def solved(process: Process) -> tuple[MixtureDenoiser, Tensor, Tensor]:
    """A mixture, states at log-SNR -3, and where they lead."""
    exact = mixture(process)
    x = randn(4, 1, 1, 2) * process.scales(span(process, 1)[0]).sigma
    return exact, x, walk(Heun(), exact, x, span(process, 2048))


@pytest.mark.parametrize("process", [VP(), LinearFlow(), VPDiscrete()], ids=str)
@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=repr)
def test_order_on_a_mixture(sampler: Sampler, process: Process) -> None:
    """Against a solution of 2,048 Heun steps, whose own error is far below the ones measured."""
    exact, x, end = solved(process)
    errors = {n: float((walk(sampler, exact, x, span(process, n)) - end).abs().max()) for n in (64, 96, 128, 192)}
    assert abs(slope(errors) - sampler.claims().order) < 0.35, errors


@pytest.mark.parametrize("process", [LinearFlow(), LinearFlow(3.0), GVP()], ids=str)
def test_second_order_from_pure_noise(process: Process) -> None:
    """alpha = 0 at the first time, where the log-SNR is infinite, must cost 2M neither its order nor a NaN."""
    exact = GaussianDenoiser(process, 0.3, 0.5, (1, 2, 2))
    x = randn(4, 1, 2, 2)
    end = exact.flow(x, 1.0, 0.1)
    errors = {}
    for n in (64, 128, 256, 512):
        times = torch.linspace(1.0, 0.1, n + 1, dtype=F64)
        errors[n] = float((walk(DPMpp2M(), exact, x, times) - end).abs().max())
    assert slope(errors) > 1.65, errors


def test_zero_terminal_snr_costs_no_accuracy() -> None:
    exact = GaussianDenoiser(VPDiscrete(zero_terminal_snr=True), 0.3, 0.5, (1, 2, 2))
    x, times = randn(4, 1, 2, 2), torch.linspace(1.0, 0.1, 65, dtype=F64)
    assert (walk(DPMpp2M(), exact, x, times) - exact.flow(x, 1.0, 0.1)).abs().max() < 5e-5


def test_2m_ends_on_clean_data_by_its_first_order_limit() -> None:
    exact, x = mixture(LinearFlow()), randn(4, 1, 1, 2)
    times = torch.linspace(1.0, 0.0, 9, dtype=F64)
    assert torch.allclose(
        DPMpp2M().sample(exact, x, grid=times, end="state"),
        DPMpp2M().sample(exact, x, 8, grid="uniform"),
        rtol=0,
        atol=1e-12,
    )


# --- distribution ------------------------------------------------------------------------------------------------


class Impulses:
    """Zero for the first two images of the batch; the j-th draw is 1 for image 2 + j alone."""

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        return (torch.arange(len(like)) == 2 + number).to(like).reshape(-1, 1, 1, 1)


def moments(sampler: Sampler, exact: GaussianDenoiser, times: Tensor, start: Scales) -> tuple[float, float]:
    """Mean and variance of the end of a run from x ~ the exact marginal at `start`, without any sampling error.

    For Gaussian data a run is affine in its start and draws, so runs of one impulse each tell it all.
    """
    x = torch.zeros(2 + (len(times) - 1) * sampler.claims().draws_per_step, 1, 1, 1, dtype=F64)
    x[1] = 1
    end = sampler.sample(exact, x, grid=times, initial_state=x, noise_source=Impulses(), end="state").flatten()
    gain = end[1:] - end[0]
    mean, variance = float(exact.means), float(exact.variances)
    spread = start.alpha**2 * variance + start.sigma**2
    return float(end[0] + gain[0] * start.alpha * mean), float(gain[0] ** 2 * spread + (gain[1:] ** 2).sum())


@pytest.mark.parametrize("process", PROCESSES.names())
@pytest.mark.parametrize(
    "sampler", [s for s in STOCHASTIC if getattr(s, "corrector", "none") == "none"] + [RD], ids=repr
)
def test_weak_order_on_gaussian_data(sampler: Sampler, process: str) -> None:
    """Mean and variance of the samples approach the exact ones as 1 / steps."""
    exact = GaussianDenoiser(PROCESSES.create(process), 0.3, 0.5, (1, 1, 1))
    errors = {}
    for n in (64, 96, 128, 192):
        times = span(exact.process, n)
        start, stop = (exact.process.scales(t) for t in (times[0], times[-1]))
        mean, variance = moments(sampler, exact, times, start)
        right = float(stop.alpha**2 * 0.25 + stop.sigma**2)
        errors[n] = max(abs(mean - 0.3 * float(stop.alpha)) / right**0.5, abs(variance / right - 1))
    assert abs(slope(errors) - 1) < 0.25, errors
    assert errors[192] < 0.1


@pytest.mark.parametrize("process", [VP(), LinearFlow()], ids=str)
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=repr)
def test_samples_follow_the_mixture(sampler: Sampler, process: Process) -> None:
    """Mean, covariance and component weight of 10,000 samples: within 4.5 standard errors and the step's bias.

    The bias of a stochastic solver of weak order 1 falls as 1 / steps: two steps' worth of the spread are allowed
    for it, and snr² of the variance where Langevin steps are taken.
    """
    count, steps = 10_000, 200
    exact = mixture(process)
    x = sampler.sample(exact, randn(count, 1, 1, 2, seed=1), steps, noise_source=Draws(2)).reshape(count, 2)
    w, mu, var = exact.weights[:, None], exact.means.reshape(2, 2), exact.variances.reshape(2, 2)
    mean = (w * mu).sum(0)
    centred = mu - mean
    covariance = torch.diag((w * var).sum(0)) + (w * centred).T @ centred
    spread = covariance.diagonal().sqrt()
    bias = 2 / steps + (sampler.snr**2 if isinstance(sampler, PredictorCorrector) else 0)
    allowed = 4.5 / math.sqrt(count) + bias
    assert ((x.mean(0) - mean).abs() / spread).max() < allowed
    # A fourth moment of at most 3 bounds the standard error of a covariance by sqrt(2 / n).
    scale = torch.outer(spread, spread)
    assert ((x.T.cov() - covariance).abs() / scale).max() < math.sqrt(2) * 4.5 / math.sqrt(count) + 2 * bias
    right = (w[:, 0] * torch.special.ndtr(mu[:, 0] / var[:, 0].sqrt())).sum()
    assert ((x[:, 0] > 0).double().mean() - right).abs() < 4.5 * 0.5 / math.sqrt(count) + bias


def test_learned_variance_is_used() -> None:
    """Fraction 0 of the learned range is fixed-small and 1 is fixed-large, draw by draw."""

    class Learned(GaussianDenoiser):
        learns_variance, fraction = True, 0.0

        def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
            d = super().__call__(x_t, t, cond)
            return Denoised(d.x_t, d.x0, d.scales, torch.full_like(x_t, self.fraction))

    model, x = Learned(VP(), 0.3, 0.5, (1, 2, 2)), randn(3, 1, 2, 2)
    for model.fraction, variance in ((0.0, "fixed-small"), (1.0, "fixed-large")):
        learned = DDPM("learned-range").sample(model, x, 10)
        assert torch.allclose(learned, DDPM(variance).sample(model, x, 10), atol=1e-12)
    model.fraction = 0.5
    middle = DDPM("learned-range").sample(model, x, 10)
    assert (middle - DDPM().sample(model, x, 10)).abs().max() > 1e-3
    for model.fraction in (0.0, 0.5, 1.0):  # a step onto clean data is finite and has no noise
        for variance in ("learned-range", "fixed-large"):
            found = DDPM(variance).sample(model, x, grid=torch.tensor([0.5, 0.0]), initial_state=x, end="state")
            assert torch.allclose(found, model(x, 0.5, model.condition(None, 3)).x0, atol=1e-12)


# --- Langevin ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [VP(), LinearFlow(), VE()], ids=str)
def test_corrector_leaves_the_exact_marginal_as_it_is(process: Process) -> None:
    """30 moves at one noise level on exact samples of its marginal: mean and variance stay, up to snr²."""
    count, exact = 20_000, mixture(process)
    k = process.scales(process.time_of(torch.tensor(0.5, dtype=F64)))
    x0 = exact.sample(torch.zeros(count, dtype=torch.int64), torch.Generator().manual_seed(3))
    x = k.alpha * x0 + k.sigma * randn(*x0.shape, seed=4)
    before = x.flatten(1)
    corrector = PredictorCorrector("none", "annealed", snr=0.1, corrector_steps=30)
    s = process.scales(k.time - 1e-9)  # a step needs an earlier time; nothing moves in so little of it
    after = walk_scales(corrector, exact, x, k, s).flatten(1)
    spread = before.std(0)
    assert (after - before).abs().mean() > 0.3 * spread.mean(), "it must move"
    assert ((after.mean(0) - before.mean(0)) / spread).abs().max() < 4.5 * math.sqrt(2 / count)
    assert (after.var(0) / before.var(0) - 1).abs().max() < 0.1**2 + 4.5 * math.sqrt(4 / count)


def walk_scales(sampler: Sampler, model: MixtureDenoiser, x: Tensor, t: Scales, s: Scales) -> Tensor:
    grid = torch.stack([t.time, s.time])
    return sampler.sample(model, x, grid=grid, initial_state=x, end="state", noise_source=Draws(5))


@pytest.mark.parametrize("process", [VP(), LinearFlow(), VE()], ids=str)
def test_one_langevin_move_on_gaussian_data(process: Process) -> None:
    """By hand: x + e score + sqrt(2 e) z turns the variance V into (1 - e / V)² V + 2 e, and keeps the mean."""
    exact = GaussianDenoiser(process, 0.3, 0.5, (1, 1, 1))
    times = torch.tensor([0.6, 0.4], dtype=F64)
    s = process.scales(times[1])
    mean, variance = moments(PredictorCorrector("none", "annealed", snr=0.2), exact, times, s)
    v, size = s.alpha**2 * 0.25 + s.sigma**2, 2 * (0.2 * s.sigma) ** 2
    assert math.isclose(mean, 0.3 * float(s.alpha), rel_tol=1e-10)
    assert math.isclose(variance, float((1 - size / v) ** 2 * v + 2 * size), rel_tol=1e-10)


def test_langevin_step_size_by_hand() -> None:
    x, z, k = randn(2, 1, 4, 4), randn(2, 1, 4, 4, seed=1), VP().scales(0.5)
    d = Denoised(x, torch.zeros_like(x), k)  # eps = x / sigma
    norm = lambda v: (v**2).sum((1, 2, 3), keepdim=True).sqrt()  # noqa: E731
    by_hand = 2 * (0.16 * norm(z) / (norm(x) / k.sigma**2)) ** 2
    assert torch.allclose(langevin_step_size(d, z, k, 0.16, "langevin"), by_hand, rtol=1e-12)
    assert langevin_step_size(d, z, k, 0.16, "annealed") == pytest.approx(
        float(2 * (0.16 * k.sigma) ** 2), rel=1e-12
    )


def test_langevin_with_norms_fits_each_sample_alone() -> None:
    exact, x = GaussianDenoiser(VP(), 0.3, 0.5, (1, 8, 8)), randn(4, 1, 8, 8)
    sampler = PredictorCorrector("reverse-diffusion", "langevin")
    whole = sampler.sample(exact, x.float(), 8, seed=[1, 2, 3, 4])
    alone = torch.cat([sampler.sample(exact, x[i : i + 1].float(), 8, seed=[i + 1]) for i in range(4)])
    assert torch.allclose(whole, alone, atol=1e-5)


# --- identities --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES.names())
def test_ddim_with_eta_1_is_ddpm(process: str) -> None:
    exact, x = mixture(PROCESSES.create(process)), randn(5, 1, 1, 2)
    a, b = (s.sample(exact, x, 12, seed=3) for s in (DDIM(1.0), DDPM()))
    assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES.names())
def test_first_order_dpmpp_and_flow_euler_are_ddim(process: str) -> None:
    exact, x = mixture(PROCESSES.create(process)), randn(5, 1, 1, 2)
    grid = DDIM().grid_for(exact.process)
    truth = DDIM().sample(exact, x, 12, grid=grid)
    for sampler in (DPMpp2M(order=1), FlowEuler()):
        assert torch.allclose(sampler.sample(exact, x, 12, grid=grid), truth, rtol=1e-12, atol=1e-12)


def test_on_the_linear_path_euler_is_ddim() -> None:
    exact, x = mixture(LinearFlow()), randn(5, 1, 1, 2)
    assert torch.allclose(Euler().sample(exact, x, 12), DDIM().sample(exact, x, 12), rtol=0, atol=1e-12)
    shifted = mixture(LinearFlow(3.0))  # there Euler steps in t, flow-euler in sigma
    assert not torch.allclose(Euler().sample(shifted, x, 12), FlowEuler().sample(shifted, x, 12), atol=1e-3)


def test_on_ve_the_reverse_diffusion_predictor_is_ddpm_with_large_variance() -> None:
    exact, x = mixture(VE()), randn(5, 1, 1, 2)
    a = PredictorCorrector("reverse-diffusion", "none").sample(exact, x, 30, seed=3)
    assert torch.allclose(a, DDPM("fixed-large").sample(exact, x, 30, seed=3), rtol=0, atol=1e-11)


def test_predictor_alone_is_its_sampler() -> None:
    exact, x = mixture(SubVP()), randn(5, 1, 1, 2)
    for name, sampler in (("ancestral", DDPM()), ("euler-maruyama", EulerMaruyama())):
        a = PredictorCorrector(name, "none").sample(exact, x, 12, seed=3)  # type: ignore[arg-type]
        assert torch.allclose(a, sampler.sample(exact, x, 12, seed=3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", STOCHASTIC + DETERMINISTIC, ids=repr)
def test_one_point_is_found_by_every_solver(sampler: Sampler) -> None:
    """Data of a single image: the posterior mean is that image, so every solver must return it."""
    exact = GaussianDenoiser(EDM(), 0.3, 0.0, (1, 2, 2))
    assert torch.allclose(sampler.sample(exact, randn(3, 1, 2, 2), 20), torch.tensor(0.3, dtype=F64), atol=1e-6)


def test_the_claims_count_evaluations_and_draws() -> None:
    exact, x = mixture(VP()), randn(2, 1, 1, 2)
    for sampler in [SAMPLERS.create(name) for name in SAMPLERS] + STOCHASTIC:
        drawn: list[int] = []

        class Counting(Draws):
            def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
                drawn.append(number)  # noqa: B023 (used within this turn of the loop)
                return super().normal(stream, number, like)

        steps = list(sampler.iterate(exact, x, 5, noise_source=Counting(0)))
        if sampler.claims().cost_depends_on != "steps":
            assert steps[-1].nfe >= sampler.nfe(5)
            assert set(drawn) <= set(range(4 * sampler.claims().draws_per_step))
            continue
        assert steps[-1].nfe == sampler.nfe(5)
        assert drawn == list(range(4 * sampler.claims().draws_per_step)), "each draw is used once, in order"
        assert sampler.stochastic == bool(drawn)
