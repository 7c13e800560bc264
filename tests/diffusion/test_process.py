"""Processes against automatic differentiation, their own inverses, and the formulas of the papers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PROCESSES, Process
from dinit.diffusion.continuous import EDM, GVP, VE, VP, LinearFlow, SubVP
from dinit.diffusion.discrete import VPBetas, VPDiscrete, beta_schedule
from dinit.diffusion.process import diffusion_squared

F64 = torch.float64
VARIANTS: list[Process] = [
    *(PROCESSES.create(name) for name in PROCESSES),
    LinearFlow(shift=3.0),
    VP(0.2, 12.0),
    VE(0.02, 80.0),
    *(VPDiscrete(schedule) for schedule in ("scaled-linear", "cosine")),  # type: ignore[arg-type]
    VPDiscrete("linear", num_steps=50),
    VPDiscrete(zero_terminal_snr=True),
]


@pytest.fixture(params=VARIANTS, ids=str)
def process(request: pytest.FixtureRequest) -> Process:
    return request.param


def inner_times(count: int = 301) -> Tensor:
    """Times that fall between the levels of every chain, and upon many of them."""
    return torch.cat([torch.linspace(0.003, 0.9985, count, dtype=F64), torch.arange(1, 50, dtype=F64) / 50])


def test_derivatives_are_those_of_automatic_differentiation(process: Process) -> None:
    t = inner_times().requires_grad_()
    k = process.scales(t)
    for value, derivative in ((k.alpha, k.d_alpha), (k.sigma, k.d_sigma)):
        if not value.requires_grad:  # a constant alpha
            assert torch.equal(derivative.detach(), torch.zeros_like(t))
            continue
        (found,) = torch.autograd.grad(value.sum(), t, retain_graph=True)
        scale = derivative.detach().abs().clamp(min=1)
        assert ((found - derivative.detach()).abs() / scale).max() < 1e-9


def test_log_snr_falls_and_its_inverse_inverts(process: Process) -> None:
    t = inner_times().sort().values.unique()
    log_snr = process.log_snr(t)
    assert (log_snr.diff() < 0).all()
    assert (process.time_of(log_snr) - t).abs().max() < 1e-11
    assert (process.log_snr(process.time_of(log_snr)) - log_snr).abs().max() < 1e-9
    level = process.scales(t).noise_level
    assert (process.time_of_noise_level(level) - t).abs().max() < 1e-11
    assert torch.allclose(log_snr, process.scales(t).log_snr, rtol=1e-9, atol=1e-9)


def test_alpha_falls_sigma_rises(process: Process) -> None:
    k = process.scales(torch.linspace(0, 1, 1001, dtype=F64))
    assert (k.alpha.diff() <= 0).all()
    assert (k.sigma.diff() > 0).all() or (isinstance(process, VP | VPDiscrete) and (k.sigma.diff() >= 0).all())


def test_ends_are_exact(process: Process) -> None:
    clean, noisy = process.scales(0.0), process.scales(1.0)
    assert float(clean.alpha) == 1
    assert float(clean.sigma) == (process.sigma_min if isinstance(process, VE) else 0)
    if isinstance(process, VE | EDM):
        assert (float(noisy.alpha), float(noisy.sigma)) == (1, process.sigma_max)
    if isinstance(process, LinearFlow | GVP) or getattr(process, "zero_terminal_snr", False):
        assert (float(noisy.alpha), float(noisy.sigma)) == (0, 1)
        assert float(noisy.log_snr) == -math.inf
    assert all(bool(v.isfinite()) for v in (noisy.d_alpha, noisy.d_sigma))


def test_preserved_variance() -> None:
    t = torch.linspace(0, 1, 501, dtype=F64)
    for process in (VP(), GVP(), VPDiscrete(), VPDiscrete("cosine"), VPDiscrete(zero_terminal_snr=True)):
        k = process.scales(t)
        assert (k.alpha**2 + k.sigma**2 - 1).abs().max() < 1e-14


def test_drift_and_diffusion_are_those_of_the_papers() -> None:
    t = torch.linspace(0.01, 1, 100, dtype=F64)
    for process in (VP(), SubVP()):
        beta = 0.1 + 19.9 * t
        integral = 0.1 * t + 19.9 * t**2 / 2
        assert torch.allclose(process.drift(t), -beta / 2, rtol=1e-11)
        # Song et al. 2021, Eq. 11 and 13 (sub-VP).
        g2 = beta if isinstance(process, VP) else beta * (1 - torch.exp(-2 * integral))
        assert torch.allclose(process.diffusion_squared(t), g2, rtol=1e-9)
        assert torch.allclose(process.scales(t).alpha, torch.exp(-integral / 2), rtol=1e-13)
    ve = VE()
    assert torch.equal(ve.drift(t), torch.zeros_like(t))
    rate = 2 * math.log(ve.sigma_max / ve.sigma_min)
    assert torch.allclose(ve.diffusion_squared(t), ve.scales(t).sigma ** 2 * rate, rtol=1e-12)
    assert torch.allclose(EDM().diffusion_squared(t), 2 * 80.0**2 * t, rtol=1e-12)


def test_marginal_variance_follows_the_sde(process: Process) -> None:
    """d(sigma²)/dt = 2 f sigma² + g², with the derivative taken by automatic differentiation."""
    t = torch.linspace(0.003, 0.998, 101, dtype=F64).requires_grad_()
    k = process.scales(t)
    (rate,) = torch.autograd.grad((k.sigma**2).sum(), t)
    right = (2 * process.drift(t) * k.sigma**2 + diffusion_squared(k)).detach()
    assert ((rate - right).abs() / right.abs().clamp(min=1)).max() < 1e-7
    assert (diffusion_squared(k) > 0).all()


def test_a_chain_meets_its_levels_and_stays_smooth_between() -> None:
    for schedule in ("linear", "scaled-linear", "cosine"):
        chain = VPDiscrete(schedule)  # type: ignore[arg-type]
        alpha_bar = (1 - beta_schedule(schedule, 1000)).cumprod(0)  # type: ignore[arg-type]
        t = torch.arange(1, 1001, dtype=F64) / 1000
        k = chain.scales(t)
        # alpha is read back as exp(log(alpha)), |log(alpha)| < 10. A last digit of the logarithm there is 1.8e-15,
        # and the vectorised log and exp of some processors are rounded otherwise.
        torch.testing.assert_close(k.alpha, chain.alphas, rtol=1e-14, atol=0)
        assert torch.allclose(k.alpha**2, alpha_bar, rtol=1e-12)
        assert chain.noise_label(k).round().tolist() == list(range(1000))
        before, after = chain.scales(t[:-2] - 1e-9).d_alpha, chain.scales(t[:-2] + 1e-9).d_alpha
        assert ((before - after).abs() / (before.abs() + 1e-3)).max() < 1e-3, "the slope is continuous"


def test_published_betas() -> None:
    linear = beta_schedule("linear", 1000)
    assert (float(linear[0]), float(linear[-1])) == (1e-4, 0.02)
    assert beta_schedule("cosine", 1000).max() == 0.999
    assert torch.equal(beta_schedule("squared-cosine", 77), beta_schedule("cosine", 77))
    f = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2  # noqa: E731
    alpha_bar = (1 - beta_schedule("cosine", 1000)).cumprod(0)
    for i in (0, 100, 500, 900):  # Nichol & Dhariwal 2021, Eq. 17
        assert math.isclose(float(alpha_bar[i]), f((i + 1) / 1000) / f(0), rel_tol=1e-11)


def test_zero_terminal_snr_is_lin_et_al_algorithm_1() -> None:
    plain, zero = VPDiscrete().alphas, VPDiscrete(zero_terminal_snr=True).alphas
    assert float(zero[-1]) == 0
    assert math.isclose(float(zero[0]), float(plain[0]), rel_tol=1e-14)
    line = (zero[1:-1] - zero[0]) / (plain[1:-1] - plain[0])  # an affine map of the square root of alpha-bar
    assert line.std() < 1e-12


def test_shift_of_the_resolution() -> None:
    t = torch.linspace(0.01, 0.99, 99, dtype=F64)
    k = LinearFlow(3.0).scales(t)
    assert torch.allclose(k.sigma, 3 * t / (1 + 2 * t), rtol=1e-14)
    plain = LinearFlow().scales(t)
    assert torch.allclose(k.noise_level, 3 * plain.noise_level, rtol=1e-12), "a shift multiplies the noise level"


def test_config_round_trip(process: Process) -> None:
    again = PROCESSES.create(process.to_config())
    assert again == process
    assert torch.equal(again.scales(inner_times()).sigma, process.scales(inner_times()).sigma)


def test_scales_of_a_batch_broadcast() -> None:
    k = VP().scales(torch.tensor([0.2, 0.7], dtype=F64))
    x = torch.zeros(2, 3, 4, 4)
    kx = k.like(x)
    assert kx.alpha.shape == (2, 1, 1, 1)
    assert kx.alpha.dtype == x.dtype
    first = k.unbind()[0]
    assert first.like(x) is first
    assert float(first.alpha) == float(k.alpha[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(beta_min=-1.0), "beta_min must be positive"),
        (lambda: VP(beta_min=3.0, beta_max=1.0), "at least beta_min"),
        (lambda: VE(sigma_min=0.0), "sigma_min must be positive"),
        (lambda: EDM(sigma_min=5.0, sigma_max=2.0), "above sigma_min"),
        (lambda: LinearFlow(shift=0.0), "shift must be positive"),
        (lambda: VPDiscrete("linaer"), "did you mean 'linear'"),  # type: ignore[arg-type]
        (lambda: VPDiscrete("cosine", beta_start=0.1), "has no beta_start"),
        (lambda: VPDiscrete(num_steps=0), "at least 1"),
        (lambda: VPDiscrete(num_steps=10), r"lie in \(0, 1\)"),
        (lambda: VPDiscrete(num_steps=1, beta_start=0.1, beta_end=0.1, zero_terminal_snr=True), "at least 2"),
        (lambda: PROCESSES.create("vp", beta_mn=1), "did you mean 'beta_min'"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_discrete_levels_are_joined_by_the_cubic_spline() -> None:
    """The second derivative of log alpha is continuous at the levels: solvers above second order rely on it."""
    process = PROCESSES.create("vp-discrete", num_steps=50)
    levels = torch.arange(3, 50, dtype=torch.float64) / 50  # before them a slope is held, to stay monotone
    step = 1e-6

    def second(t: torch.Tensor) -> torch.Tensor:
        slope = [process.drift(t + shift) for shift in (-step, step)]
        return (slope[1] - slope[0]) / (2 * step)

    before, after = second(levels - 2 * step), second(levels + 2 * step)
    assert (before - after).abs().max() < 1e-3 * before.abs().max()


@pytest.mark.parametrize("betas", [(0.01, 0.9), (0.9, 0.01), (0.3, 0.3)], ids=str)
def test_a_chain_of_two_levels_falls_everywhere(betas: tuple[float, ...]) -> None:
    """Three knots have no spline: the middle slope is the secants' harmonic mean, so that both stay monotone."""
    process = VPBetas(betas)
    t = torch.linspace(0, 1, 2001, dtype=F64)
    log_alpha = process.scales(t).alpha.log()
    assert bool((log_alpha.diff() < 0).all())
    inside = t[1:]
    assert (process.time_of(process.log_snr(inside)) - inside).abs().max() < 1e-6
    before, after = (math.log(1 - beta) / 2 for beta in betas)  # per level
    slope = 2 * before * after / (before + after)
    assert float(process.drift(0.5)) == pytest.approx(2 * slope, rel=1e-12)  # two levels in t from 0 to 1
    assert process.t_min == 0.5
