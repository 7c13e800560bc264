"""Stochastic solvers: weak convergence without sampling error, deterministic limits, identities, marginals."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from test_solvers import Draws, eighths, mixture, moments, randn, slope, span, walk
from torch import Tensor

from dinit.diffusion import PROCESSES, Condition, Denoised, Process, Scales, WrappedDenoiser
from dinit.diffusion.continuous import EDM, GVP, VE, VP, LinearFlow, SubVP
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers import Sampler
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Euler, Heun
from dinit.samplers.sde.ancestral import Ancestral
from dinit.samplers.sde.ddpm import DDPM, Variance
from dinit.samplers.sde.dpmpp_sde import DPMpp2MSDE, DPMpp3MSDE, DPMppSDE
from dinit.samplers.sde.er_sde import ERSDE
from dinit.samplers.sde.euler_maruyama import EulerMaruyama
from dinit.samplers.sde.exponential import lagrange_weights
from dinit.samplers.sde.exponential import moments as theta_moments
from dinit.samplers.sde.flow_sde import DIFFUSIONS, FlowSDE
from dinit.samplers.sde.predictor_corrector import PredictorCorrector, ReverseDiffusion
from dinit.samplers.sde.sa_solver import SASolver

F64 = torch.float64
STOCHASTIC = [
    ReverseDiffusion(),
    Ancestral(),
    Ancestral(0.5),
    Ancestral(1.5),
    Ancestral(solver="dpm-2"),
    Ancestral(0.7, solver="dpmpp-2s"),
    DPMppSDE(),
    DPMppSDE(0.5),
    DPMpp2MSDE(),
    DPMpp2MSDE(0.5, variant="heun"),
    DPMpp2MSDE(order=1),
    DPMpp3MSDE(),
    DPMpp3MSDE(curvature="published"),
    SASolver(),
    SASolver(0.6, predictor_order=3, corrector_order=3),
    SASolver(1.0, -1.0, 1.0, 1, 0),
    SASolver(weights="published"),
    ERSDE(),
    ERSDE(order=1),
    ERSDE("sde", 2),
    FlowSDE(),
    FlowSDE(method="euler-maruyama"),
    FlowSDE("sbdm"),
    FlowSDE("sbdm", method="euler-maruyama"),
]
# Each with the order that it must show against the probability flow.
DETERMINISTIC = {
    Ancestral(0.0): 1,
    Ancestral(0.0, solver="dpm-2"): 2,
    Ancestral(0.0, solver="dpmpp-2s"): 2,
    DPMppSDE(0.0): 2,
    DPMpp2MSDE(0.0): 2,
    DPMpp2MSDE(0.0, variant="heun"): 2,
    DPMpp2MSDE(0.0, order=1): 1,
    DPMpp3MSDE(0.0): 3,
    DPMpp3MSDE(0.0, curvature="published"): 2,
    SASolver(0.0, predictor_order=1, corrector_order=0): 1,
    SASolver(0.0, predictor_order=3, corrector_order=0): 3,
    SASolver(0.0, predictor_order=1, corrector_order=2): 2,
    SASolver(0.0, predictor_order=2, corrector_order=3): 3,
    SASolver(0.0, predictor_order=2, corrector_order=2, weights="published"): 2,
    SASolver(0.0, predictor_order=4, corrector_order=4): 4,
    ERSDE("ode", 1): 1,
    ERSDE("ode", 2): 2,
    ERSDE("ode", 3): 3,
    FlowSDE(norm=0.0, method="euler-maruyama"): 1,
    FlowSDE(norm=0.0): 2,
}


def gaussian(process: Process) -> GaussianDenoiser:
    return GaussianDenoiser(process, 0.3, 0.5, (1, 1, 1))


# --- distribution ------------------------------------------------------------------------------------------------


def weak_errors(sampler: Sampler, process: Process, counts: tuple[int, ...]) -> dict[int, float]:
    """Error of mean and variance from log-SNR -3 to 3, exact at the start, without sampling error."""
    exact, errors = gaussian(process), {}
    for n in counts:
        times = span(process, n)
        start, stop = process.scales(times[[0, -1]]).unbind()
        mean, variance = moments(sampler, exact, times, start)
        right = float(stop.alpha**2 * 0.25 + stop.sigma**2)
        errors[n] = max(abs(mean - 0.3 * float(stop.alpha)) / right**0.5, abs(variance / right - 1))
    return errors


@pytest.mark.parametrize("process", PROCESSES.names())
@pytest.mark.parametrize("sampler", STOCHASTIC, ids=repr)
def test_weak_order_on_gaussian_data(sampler: Sampler, process: str) -> None:
    errors = weak_errors(sampler, PROCESSES.create(process), (64, 96, 128, 192))
    assert slope(errors) > 0.75 or max(errors.values()) < 5e-4, errors  # or the error crosses 0 on the way
    assert errors[192] < 0.1


@pytest.mark.parametrize("process", [LinearFlow(), GVP(), VP()], ids=str)
@pytest.mark.parametrize("method", ["euler-maruyama", "heun"])
@pytest.mark.parametrize("diffusion", list(DIFFUSIONS))
def test_every_diffusion_coefficient_has_the_marginals(diffusion: str, method: str, process: Process) -> None:
    for norm in (0.5, 1.0):
        errors = weak_errors(FlowSDE(diffusion, norm, method), process, (64, 128))  # type: ignore[arg-type]
        assert errors[128] < 0.03
        assert errors[128] < max(0.65 * errors[64], 5e-4)


@pytest.mark.parametrize(
    ("sampler", "process"), zip(STOCHASTIC, itertools.cycle([VP(), LinearFlow(), VE()]), strict=False), ids=repr
)
def test_samples_follow_the_mixture(sampler: Sampler, process: Process) -> None:
    """Mean, covariance and component weight of 10,000 samples from pure noise. One process each: the weak order
    above, without sampling error, is measured on all.
    """
    if sampler == Ancestral(1.5):
        pytest.skip("its bias at this many steps is above the bound; its weak order is measured above")
    count, steps = 10_000, 150
    exact = mixture(process)
    x = sampler.sample(exact, randn(count, 1, 1, 2, seed=1), steps, noise_source=Draws(2)).reshape(count, 2)
    w, mu, var = exact.weights[:, None], exact.means.reshape(2, 2), exact.variances.reshape(2, 2)
    mean = (w * mu).sum(0)
    covariance = torch.diag((w * var).sum(0)) + (w * (mu - mean)).T @ (mu - mean)
    spread = covariance.diagonal().sqrt()
    allowed = 4.5 / math.sqrt(count) + 4 / steps
    assert ((x.mean(0) - mean).abs() / spread).max() < allowed
    assert ((x.T.cov() - covariance).abs() / torch.outer(spread, spread)).max() < 2 * allowed
    right = (w[:, 0] * torch.special.ndtr(mu[:, 0] / var[:, 0].sqrt())).sum()
    assert ((x[:, 0] > 0).double().mean() - right).abs() < allowed


# --- deterministic limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [SubVP(), VE(), LinearFlow(3.0), VPDiscrete()], ids=str)
@pytest.mark.parametrize(("sampler", "order"), DETERMINISTIC.items(), ids=repr)
def test_order_without_noise(sampler: Sampler, order: int, process: Process) -> None:
    assert (sampler.claims().order, sampler.stochastic) == (order, False)
    exact = GaussianDenoiser(process, 0.3, 0.5, (1, 2, 2))
    x = randn(4, 1, 2, 2) * process.scales(span(process, 1)[0]).sigma
    errors = {n: eighths(sampler, exact, x, span(process, n, bent=True)) for n in (64, 96, 128, 192)}
    assert slope(errors) > order - 0.3, errors


@pytest.mark.parametrize("process", PROCESSES.names())
@pytest.mark.parametrize(
    ("ours", "known"),
    [
        (Ancestral(0.0), DDIM()),
        (Ancestral(0.6), DDIM(0.6)),
        (Ancestral(), DDPM()),
        (DPMpp2MSDE(order=1), DDPM()),
        (DPMpp2MSDE(0.0), DPMpp2M()),
        (DPMpp2MSDE(0.0, variant="heun"), DPMpp2M("heun")),
        (SASolver(0.0, predictor_order=1, corrector_order=0), DDIM()),
        (SASolver(1.0, predictor_order=1, corrector_order=0), DDPM()),
        (SASolver(0.0, predictor_order=2, corrector_order=0), DPMpp2M("heun")),
        (SASolver(0.7, predictor_order=2, corrector_order=0), DPMpp2MSDE(0.49, variant="heun")),
        (SASolver(0.7, predictor_order=3, corrector_order=0), DPMpp3MSDE(0.49, max_step_ratio=math.inf)),
        (DPMpp2MSDE(variant="heun"), DPMpp3MSDE(max_step_ratio=1e-9)),
        (ERSDE("ode", 1), DDIM()),
        (ERSDE("sde", 1), DDPM()),
        (FlowSDE(norm=0.0, method="euler-maruyama"), Euler()),
        (FlowSDE(norm=0.0), Heun()),
        (FlowSDE("sbdm", method="euler-maruyama"), EulerMaruyama()),
        (PredictorCorrector("dpmpp-2m", "none"), DPMpp2M()),
        (PredictorCorrector(DPMppSDE(0.3), "none"), DPMppSDE(0.3)),
        (PredictorCorrector("reverse-diffusion", "none"), ReverseDiffusion()),
    ],
    ids=repr,
)
def test_identities(ours: Sampler, known: Sampler, process: str) -> None:
    """The same run, draw by draw, on every process; flow and gvp start where alpha is 0."""
    exact, x = mixture(PROCESSES.create(process)), randn(5, 1, 1, 2)
    grid = torch.linspace(1, 0.05, 12, dtype=F64)
    a, b = (sampler.sample(exact, x, grid=grid, end="state", seed=3) for sampler in (ours, known))
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-10)


def test_on_edm_ancestral_without_noise_is_euler_in_sigma() -> None:
    exact, x = mixture(EDM()), randn(5, 1, 1, 2)
    a, b = (s.sample(exact, x, 12) for s in (Ancestral(0.0), Euler()))
    assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_ve_ancestral_of_score_sde() -> None:
    """x + (sigma_t² - sigma_s²) score + sqrt(sigma_s² (sigma_t² - sigma_s²) / sigma_t²) z. Song et al. 2021."""
    exact, x = mixture(VE()), randn(5, 1, 1, 2)
    t, s = VE().scales(torch.tensor([0.6, 0.5], dtype=F64)).unbind()
    d, z, rise = exact(x, t, exact.condition(None, 5)), randn(5, 1, 1, 2, seed=9), t.sigma**2 - s.sigma**2
    by_hand = x + rise * d.score + (s.sigma**2 * rise / t.sigma**2).sqrt() * z
    assert torch.allclose(one_step(Ancestral(), exact, x, t.time, s.time, z), by_hand, atol=1e-12)


def one_step(sampler: Sampler, exact, x: Tensor, t: Tensor, s: Tensor, z: Tensor) -> Tensor:
    class Given:
        def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
            return z

    return sampler.sample(exact, x, grid=torch.stack([t, s]), initial_state=x, end="state", noise_source=Given())


@pytest.mark.parametrize("process", [VP(), SubVP(), LinearFlow(), EDM()], ids=str)
def test_reverse_diffusion_reverses_the_chain(process: Process) -> None:
    """x_t = a x_s + b z has the reverse (2 - a) x_t + b² score + b z with a, b exact for the step."""
    exact, x, z = mixture(process), randn(5, 1, 1, 2), randn(5, 1, 1, 2, seed=9)
    t, s = process.scales(torch.tensor([0.6, 0.5], dtype=F64)).unbind()
    a = t.alpha / s.alpha
    b = (t.sigma**2 - a**2 * s.sigma**2).sqrt()
    by_hand = (2 - a) * x + b**2 * exact(x, t, exact.condition(None, 5)).score + b * z
    assert torch.allclose(one_step(ReverseDiffusion(), exact, x, t.time, s.time, z), by_hand, atol=1e-12)


def test_larger_s_noise_spreads_the_samples() -> None:
    exact = gaussian(VP())
    times = span(VP(), 64)
    start = VP().scales(times[0])
    for sampler in (Ancestral, DPMppSDE, DPMpp2MSDE, DPMpp3MSDE, ERSDE):
        plain, loud = (moments(sampler(s_noise=c), exact, times, start)[1] for c in (1.0, 1.1))
        assert 1.05 < loud / plain < 1.22, sampler


def test_sa_solver_is_deterministic_outside_its_interval() -> None:
    exact, x = mixture(VP()), randn(5, 1, 1, 2)
    silent, quiet = (SASolver(tau, 50.0, 60.0) for tau in (1.0, 3.0))
    assert torch.equal(silent.sample(exact, x, 12, seed=1), quiet.sample(exact, x, 12, seed=2))
    assert torch.allclose(silent.sample(exact, x, 12), SASolver(0.0).sample(exact, x, 12))
    assert not torch.allclose(SASolver(1.0, -2.0, 2.0).sample(exact, x, 12), SASolver(0.0).sample(exact, x, 12))


# --- coefficients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [1e-6, 0.01, 0.5, 0.999, 1.001, 3.0, 40.0])
def test_moments_are_the_integrals(decay: float) -> None:
    theta = (torch.arange(200_000, dtype=F64) + 0.5) / 200_000
    mass = decay * (-decay * (1 - theta)).exp() / 200_000
    for k, found in enumerate(theta_moments(decay, 4)):
        assert math.isclose(found, float((mass * theta**k).sum()), rel_tol=1e-6)


def test_second_differences_vanish_with_the_step() -> None:
    """diffusers' third-order SDE-DPM++ has a sign wrong in this coefficient, which then does not vanish."""
    for h in (1e-2, 1e-4):
        assert math.isclose(theta_moments(h, 3)[2], h / 3, rel_tol=2 * h)


def test_lagrange_weights_integrate_polynomials_exactly() -> None:
    nodes, of_powers = (0.0, -0.7, -2.0, 1.0), theta_moments(0.8, 4)
    weights = lagrange_weights(nodes, of_powers)
    for k in range(4):
        assert math.isclose(sum(w * n**k for w, n in zip(weights, nodes, strict=True)), of_powers[k], abs_tol=1e-13)


@pytest.mark.parametrize("scale", ["ode", "sde", "er-sde"])
def test_er_sde_integrals(scale) -> None:
    """Against a fine sum of phi' / phi² (u - u_t)^k; and r and the noise of one step by hand."""
    phi = {"ode": lambda u: u, "sde": lambda u: u**2, "er-sde": lambda u: u * ((u**0.3).exp() + 10)}[scale]
    u_t, u_s = 2.0, 0.5
    edges = torch.linspace(u_s, u_t, 200_001, dtype=F64)
    middle, inverse = (edges[1:] + edges[:-1]) / 2, 1 / phi(edges)
    mass = (inverse[:-1] - inverse[1:]) * phi(edges[0])
    for k, found in zip((1, 2), ERSDE(scale)._integrals(u_t, u_s), strict=True):
        assert math.isclose(found, float((mass * (middle - u_t) ** k).sum()), rel_tol=1e-6)
    exact, x, z = mixture(EDM()), randn(5, 1, 1, 2), randn(5, 1, 1, 2, seed=9)
    r = phi(edges[0]) / phi(edges[-1])
    x0 = exact(x, 2.0 / 80, exact.condition(None, 5)).x0
    by_hand = r * x + (1 - r) * x0 + (u_s**2 - (r * u_t) ** 2).clamp(min=0).sqrt() * z
    times = torch.tensor([u_t, u_s], dtype=F64) / 80
    assert torch.allclose(one_step(ERSDE(scale, 1), exact, x, times[0], times[1], z), by_hand, atol=1e-10)


# --- where log-SNR is infinite -----------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [LinearFlow(), GVP(), VPDiscrete(zero_terminal_snr=True)], ids=str)
@pytest.mark.parametrize("sampler", [*STOCHASTIC, *DETERMINISTIC], ids=repr)
def test_from_alpha_0_to_sigma_0(sampler: Sampler, process: Process) -> None:
    exact, x = mixture(process), randn(6, 1, 1, 2)
    grid = torch.linspace(1, 0, 25, dtype=F64)
    found = sampler.sample(exact, x, grid=grid, end="state", seed=1)
    assert bool(found.isfinite().all())
    assert found.abs().max() < 4


class LearnedVariance(WrappedDenoiser):
    """The inner denoiser, with a variance that it learned."""

    learns_variance = True

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        return replace(self.inner(x_t, t, cond), variance_fraction=torch.full_like(x_t, 0.3))


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large", "learned-range", "learned"])
def test_ddpms_step_onto_clean_data_is_the_posterior_mean_whatever_the_variance(variance: Variance) -> None:
    exact, x = LearnedVariance(mixture(VP())), randn(6, 1, 1, 2)
    times = torch.tensor([0.1, 0.0], dtype=F64)
    found = one_step(DDPM(variance), exact, x, times[0], times[1], randn(6, 1, 1, 2) + 5)
    assert torch.allclose(found, exact(x, 0.1, exact.condition(None, 6)).x0, atol=1e-12)


# Without a limit at alpha = 0, where sigma / alpha or g² is infinite: a plain step is taken instead.
NO_LIMIT = [
    ReverseDiffusion(),
    Ancestral(solver="dpm-2"),
    Ancestral(0.0, solver="dpm-2"),
    FlowSDE("sbdm"),
    FlowSDE("sbdm", method="euler-maruyama"),
    SASolver(1.0, -1.0, 1.0, 1, 0),
]


@pytest.mark.parametrize("sampler", [s for s in (*STOCHASTIC, *DETERMINISTIC) if s not in NO_LIMIT], ids=repr)
def test_the_step_from_alpha_0_is_the_limit(sampler: Sampler) -> None:
    """One step from t = 1 and from a time just before it; with two stages, up to what the second one sees."""
    exact, x, z = mixture(LinearFlow()), randn(6, 1, 1, 2), randn(6, 1, 1, 2, seed=9)
    limit, near = (one_step(sampler, exact, x, *torch.tensor([t, 0.9], dtype=F64), z) for t in (1.0, 1 - 1e-12))
    two_stages = sampler.claims().nfe_per_step == 2 and not isinstance(sampler, FlowSDE)
    assert torch.allclose(limit, near, atol=0.05 if two_stages else 1e-3)


# --- refusals and claims -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ancestral(-0.1), "eta must be at least 0"),
        (lambda: Ancestral(s_noise=0.0), "s_noise"),
        (lambda: Ancestral(solver="dpm2"), "did you mean 'dpm-2'"),  # type: ignore[arg-type]
        (lambda: DPMppSDE(math.nan), "eta must be a number, got nan"),
        (lambda: DPMpp2MSDE(variant="euler"), "'midpoint' or 'heun'"),  # type: ignore[arg-type]
        (lambda: DPMpp2MSDE(order=3), "'dpmpp-3m-sde'"),  # type: ignore[arg-type]
        (lambda: DPMpp3MSDE(curvature="half"), "'exact' or 'published'"),  # type: ignore[arg-type]
        (lambda: DPMpp3MSDE(max_step_ratio=0.0), "max_step_ratio"),
        (lambda: SASolver(-1.0), "tau must be at least 0"),
        (lambda: SASolver(1.0, 2.0, 1.0), "low must be below high"),
        (lambda: SASolver(predictor_order=5), "predictor_order must be"),
        (lambda: SASolver(corrector_order=-1), "corrector_order must be"),
        (lambda: SASolver(weights="none"), "'exact' or 'published'"),  # type: ignore[arg-type]
        (lambda: ERSDE("er-sd"), "did you mean 'er-sde'"),  # type: ignore[arg-type]
        (lambda: ERSDE(order=4), "order must be"),  # type: ignore[arg-type]
        (lambda: ERSDE(s_noise=-1.0), "s_noise"),
        (lambda: FlowSDE("sigmas"), "did you mean 'sigma'"),
        (lambda: FlowSDE(norm=-1.0), "norm"),
        (lambda: FlowSDE(last_step="tweedy"), "did you mean 'tweedie'"),  # type: ignore[arg-type]
        (lambda: PredictorCorrector("eulr"), "did you mean 'euler'"),
        (
            lambda: FlowSDE(method="heun", last_step="none").sample(
                mixture(LinearFlow()), randn(2, 1, 1, 2), grid=torch.tensor([1.0, 0.5, 0.0]), end="state"
            ),
            "the score there, which is infinite",
        ),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("sampler", [*STOCHASTIC, *DETERMINISTIC, PredictorCorrector("dpmpp-sde")], ids=repr)
def test_claims(sampler: Sampler) -> None:
    """Evaluations and draws of a plain run, each draw once and in order; the same object gives the same run."""
    exact, x, drawn = mixture(VP()), randn(2, 1, 1, 2), []

    class Counting(Draws):
        def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
            drawn.append(number)
            return super().normal(stream, number, like)

    steps = list(sampler.iterate(exact, x, 6, noise_source=Counting(0)))
    assert steps[-1].nfe == sampler.nfe(6)
    if not (isinstance(sampler, SASolver) and sampler.high < math.inf):
        assert drawn == list(range(5 * sampler.claims().draws_per_step))
    again = list(sampler.iterate(exact, x, 6, noise_source=Draws(0)))
    assert all(torch.equal(a.x_s, b.x_s) for a, b in itertools.zip_longest(steps, again))


def test_walks_agree_in_both_precisions() -> None:
    exact, x = mixture(VP()), randn(4, 1, 1, 2)
    times = span(VP(), 20)
    for sampler in [*STOCHASTIC, *DETERMINISTIC]:
        if not sampler.stochastic:
            single = walk(sampler, exact, x.float(), times)
            assert single.dtype == torch.float32
            assert torch.allclose(single.double(), walk(sampler, exact, x, times), atol=1e-4)


@pytest.mark.parametrize(
    ("diffusion", "norm"), [*((name, 1.0) for name in DIFFUSIONS), ("sigma", 0.0), ("decreasing", 0.0)]
)
def test_flow_sde_draws_wherever_its_coefficient_is_not_0(diffusion: str, norm: float) -> None:
    """'decreasing' keeps a constant at norm = 0."""
    sampler = FlowSDE(diffusion, norm)
    assert sampler.stochastic == bool(sampler.coefficient(LinearFlow().scales(0.3)) > 0)
