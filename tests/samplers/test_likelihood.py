"""Likelihoods against closed forms, the trace against Jacobians, the bound against the likelihood."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, BackboneDenoiser, Denoised, Process, Scales
from dinit.diffusion.condition import Condition
from dinit.diffusion.continuous import VE, VP
from dinit.likelihood.bound import discretised_log_prob, normal_kl, variational_bound
from dinit.likelihood.ode import Exact, Flow, Hutchinson, dequantise, gaussian_log_prob, log_likelihood
from dinit.models.analytic import GaussianDenoiser, MixtureDenoiser
from dinit.models.base import BACKBONES
from dinit.samplers import NoiseSource
from dinit.samplers.guidance import apply_guidance
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.multistep.ode_variables import STRAIGHT, TIME
from dinit.samplers.noise import RecordedNoise
from dinit.samplers.ode.ddim import transition_variance
from dinit.samplers.ode.runge_kutta import RK4

F64 = torch.float64
LABELS = torch.tensor([0, 1, 2, 0])
NAMES = PROCESSES.names()


def mixture(process: Process) -> MixtureDenoiser:
    means = 0.6 * torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    return MixtureDenoiser(process, means, torch.full_like(means, 0.05), None, torch.tensor([0, 0, 1, 1]))


def data(model: MixtureDenoiser, labels: Tensor = LABELS) -> Tensor:
    """Draws at t_min, where the density is found."""
    generator = torch.Generator().manual_seed(2)
    k = model.process.scales(model.t_min)
    x0 = model.sample(labels, generator)
    return k.alpha * x0 + k.sigma * torch.randn(x0.shape, generator=generator, dtype=F64)


def right_bits(model: MixtureDenoiser, x: Tensor) -> Tensor:
    log_prob = model.log_prob(x, model.t_min, model.condition(LABELS, len(x)))
    return -log_prob / (x[0].numel() * math.log(2)) + 7


@pytest.mark.parametrize("name", NAMES)
def test_bits_per_dim_are_those_of_the_closed_form(name: str) -> None:
    model = mixture(PROCESSES.create(name))
    x = data(model)
    found = log_likelihood(model, x, 60, labels=LABELS, trace="exact")
    assert (found.bits_per_dim - right_bits(model, x)).abs().max() < 5e-4
    assert found.nfe == 4 * 59 + (float(model.process.scales(1.0).alpha) > 0)
    single = log_likelihood(model, x.float(), 60, labels=LABELS, trace="exact")
    assert (single.bits_per_dim - right_bits(model, x)).abs().max() < 7e-4
    assert single.latent.dtype == torch.float32


def test_standard_prior_misses_the_mean() -> None:
    """Why the prior is centred: the data's mean, seen through sigma_max = 50 and the latent's own size."""
    model = mixture(PROCESSES.create("ve"))
    x = data(model)
    standard, centred = (
        log_likelihood(model, x, 40, labels=LABELS, trace="exact", prior=prior) for prior in ("standard", "centred")
    )
    right = right_bits(model, x)
    assert (standard.bits_per_dim - right).abs().max() > 1e-3 > 5 * (centred.bits_per_dim - right).abs().max()


def test_centre_of_the_prior_is_the_networks_x0_at_noise_of_the_priors_size() -> None:
    """On VE with little noise, where x0 still depends on the noise that it is read from."""
    process = VE(0.01, 2.0)
    model = GaussianDenoiser(process, 0.3, 0.5, (1, 2, 2))
    x = data(model, torch.zeros(4, dtype=torch.int64))
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(5), dtype=F64)
    options: Any = {"steps": 20, "trace": "exact", "noise_source": RecordedNoise(prior=[z])}
    standard, centred = (log_likelihood(model, x, prior=prior, **options) for prior in ("standard", "centred"))
    assert torch.equal(standard.latent, centred.latent)
    signal, noise = 0.25, 2.0**2
    centre = (0.3 * noise + signal * 2.0 * z) / (signal + noise)  # E[x0 | x_1 = 2 z]
    nearer = (centred.latent.square() - (centred.latent - centre).square()).flatten(1).sum(1) / (2 * noise)
    assert torch.allclose(centred.log_prob - standard.log_prob, nearer, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
@pytest.mark.parametrize("variable", [STRAIGHT, TIME], ids=["straight", "time"])
def test_order(method, variable) -> None:
    model = GaussianDenoiser(PROCESSES.create("flow"), 0.0, 0.5, (1, 2, 2))
    x = data(model, torch.zeros(4, dtype=torch.int64))
    right = model.log_prob(x, 0.05)
    errors = []
    for n in (9, 33):
        grid = torch.linspace(1.0, 0.05, n, dtype=F64)
        found = log_likelihood(model, x, grid=grid, trace="exact", method=method, variable=variable)
        errors.append(float((found.log_prob - right).abs().max()))
    order = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}[method]
    assert abs(math.log(errors[0] / errors[1], 4) - order) < 0.5


def test_latent_and_back() -> None:
    model = mixture(PROCESSES.create("vp"))
    x = data(model)
    latent = log_likelihood(model, x, 60, labels=LABELS).latent
    options = {"labels": LABELS, "grid": "log-snr", "initial_state": latent, "end": "state"}
    assert (RK4().sample(model, latent, 300, **options) - x).abs().max() < 1e-3


def test_hutchinson_is_unbiased() -> None:
    """Both probes, one and several, kept and fresh: the mean over seeds is the exact figure."""
    model = mixture(PROCESSES.create("flow"))
    x = data(model)[:1]
    options = {"labels": LABELS[:1], "steps": 12}
    exact = log_likelihood(model, x, trace="exact", **options).log_prob
    count = 600
    many = x.expand(count, -1, -1, -1)
    spread = {}
    for trace in (Hutchinson(), Hutchinson("gaussian"), Hutchinson(probes=4), Hutchinson(fresh=True)):
        found = log_likelihood(model, many, 12, labels=LABELS[:1].expand(count), trace=trace).log_prob
        assert found.std() > 0
        assert abs(found.mean() - exact) < 4 * found.std() / math.sqrt(count)
        spread[trace] = float(found.std())
    plain = spread[Hutchinson()]
    assert spread[Hutchinson("gaussian")] > plain
    assert spread[Hutchinson(probes=4)] == pytest.approx(plain / 2, rel=0.15)
    assert spread[Hutchinson(fresh=True)] < 0.7 * plain


@pytest.mark.parametrize("name", NAMES)
def test_trace_is_that_of_the_closed_form(name: str) -> None:
    """Of a Gaussian, eps and x0 are linear in x: the divergence of the slope is known."""
    process = PROCESSES.create(name)
    model = GaussianDenoiser(process, 0.3, 0.5, (1, 2, 2))
    x, cond = data(model, torch.zeros(4, dtype=torch.int64)), model.condition(None, 4)
    draws = NoiseSource.from_seed(0, 4)
    for t in (0.2, 0.7, 1.0):
        k = process.scales(t)
        gain = k.alpha * 0.25 / (k.alpha**2 * 0.25 + k.sigma**2)  # d x0 / d x_t
        right = 4 * (k.alpha + k.sigma) * ((1 - k.alpha * gain) / k.sigma - gain)
        for trace in (Exact(), Hutchinson()):  # a probe of signs is exact on a diagonal Jacobian
            _, found = Flow(model, cond, STRAIGHT, trace, draws).slope(x, k, 0)
            assert torch.allclose(found, right.expand(4), rtol=1e-10)


def test_network_under_no_grad_and_inference_mode() -> None:
    """A backbone, its parameters left without gradients, against the Jacobian of its own slope."""
    backbone = BACKBONES["dit"].preset("tiny").eval()
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(3))
    model = BackboneDenoiser(backbone, PROCESSES.create("flow"), PARAMETERIZATIONS.create("velocity"))
    x = torch.randn(1, backbone.in_channels, backbone.image_size, backbone.image_size)
    with torch.no_grad():
        found = log_likelihood(model, x, 3, labels=[1], method="euler")
    with torch.inference_mode():
        again = log_likelihood(model, x, 3, labels=[1], method="euler")
    assert torch.allclose(found.log_prob, again.log_prob)
    assert not found.latent.requires_grad
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_bins_and_guidance() -> None:
    model = mixture(PROCESSES.create("vp"))
    x = data(model)
    seven, eight, none = (
        log_likelihood(model, x, 5, labels=LABELS, bin_width=w).bits_per_dim for w in (2 / 256, 1 / 256, 1)
    )
    assert torch.allclose(eight - seven, torch.ones(4, dtype=F64))
    assert torch.allclose(seven - none, torch.full((4,), 7.0, dtype=F64))
    guided = log_likelihood(apply_guidance(model, CFG(1.0)), x, 5, labels=LABELS)
    assert torch.allclose(guided.log_prob, log_likelihood(model, x, 5, labels=LABELS).log_prob)


@pytest.mark.parametrize(
    "options",
    [{"trace": "exat"}, {"method": "rk5"}, {"bin_width": 0}, {"prior": "flat"}, {"steps": 1},
     {"variable": TIME, "grid": torch.tensor([1.0, 0.5, 0.0], dtype=F64)}],
    ids=lambda options: "-".join(options),
)  # fmt: skip
def test_refusals(options) -> None:
    model = mixture(PROCESSES.create("vp"))
    with pytest.raises(ValueError, match=r"unknown|must be|takes a step|infinite"):
        log_likelihood(model, data(model), labels=LABELS, **options)


def test_probe_options_are_checked() -> None:
    with pytest.raises(ValueError, match="did you mean 'gaussian'"):
        Hutchinson("gausian")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        Hutchinson(probes=0)


def test_dequantised_pixels_fill_their_bins() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(200, -1, -1, -1)
    x = dequantise(images, NoiseSource.from_seed(0, 200))
    place = (x.double() + 1) * 128 - images
    assert place.min() > -1e-4
    assert place.max() < 1 + 1e-4
    assert abs(float(place.mean()) - 0.5) < 0.005
    assert abs(float(place.std()) - math.sqrt(1 / 12)) < 0.005
    with pytest.raises(ValueError, match="uint8"):
        dequantise(x, NoiseSource.from_seed(0, 200))


def test_gaussian_log_prob() -> None:
    x = torch.randn(3, 1, 2, 2, dtype=F64)
    right = torch.distributions.Normal(0.0, 2.5).log_prob(x).sum((1, 2, 3))
    assert torch.allclose(gaussian_log_prob(x, torch.tensor(2.5, dtype=F64)), right)


# --- the variational bound ---------------------------------------------------------------------------------------


def test_normal_kl_and_decoder() -> None:
    a, b = torch.distributions.Normal(0.3, 0.7), torch.distributions.Normal(-0.2, 1.3)
    values = [torch.tensor(v, dtype=F64) for v in (0.3, 2 * math.log(0.7), -0.2, 2 * math.log(1.3))]
    assert normal_kl(*values) == pytest.approx(float(torch.distributions.kl_divergence(a, b)))
    levels = torch.arange(256, dtype=F64) * 2 / 255 - 1
    mean, std = torch.tensor(0.1, dtype=F64), torch.tensor(0.2, dtype=F64)
    mass = discretised_log_prob(levels, mean, std).exp()
    assert mass.sum() == pytest.approx(1.0, abs=1e-6)
    right = torch.distributions.Normal(mean, std)
    inner = right.cdf(levels[1:-1] + 1 / 255) - right.cdf(levels[1:-1] - 1 / 255)
    assert torch.allclose(mass[1:-1], inner, atol=2e-4)


@pytest.mark.parametrize("name", NAMES)
def test_bound_is_above_the_likelihood(name: str) -> None:
    """On smooth data a bin's probability is density times width, and many steps bring the bound near to it."""
    process = PROCESSES.create(name)
    model = GaussianDenoiser(process, 0.1, 0.3, (1, 4, 4))
    x = model.sample(torch.zeros(64, dtype=torch.int64), torch.Generator().manual_seed(0)).clamp(-1, 1)
    x = ((x + 1) * 127.5).round() / 127.5 - 1
    right = -torch.distributions.Normal(0.1, 0.3).log_prob(x).mean() / math.log(2) - math.log2(2 / 255)
    ends = process.log_snr(torch.tensor([0.999], dtype=F64)).item(), -2 * math.log(0.011)  # a bin's width or so
    found = {}
    for n in (20, 200):
        # The last step is long, as in a chain: its variance is the decoder's.
        inner = torch.linspace(ends[0], ends[1] - 1.4, n - 1, dtype=F64)
        grid = process.time_of(torch.cat([inner, inner.new_tensor(ends[1:])]))
        for variance in ("fixed-small", "fixed-large"):
            bound = variational_bound(model, x, grid=grid, variance=variance)
            assert bound.terms.shape == bound.x0_mse.shape == bound.eps_mse.shape == (64, n)
            assert torch.allclose(bound.total, bound.prior + bound.terms.sum(1))
            assert bound.total.mean() > right - 0.06, "but for the noise of one draw a time"
            found[n, variance] = float(bound.total.mean())
    assert found[200, "fixed-large"] < found[20, "fixed-large"]
    assert found[200, "fixed-large"] < right + 0.3


class WithLogVariance(GaussianDenoiser):
    """Whose variance channels say the chain's upper variance at each of `levels`, in one of the two ways."""

    learns_variance = True
    bounded = False
    levels: list[Scales]

    def __call__(self, x_t: Tensor, t: Any, cond: Condition) -> Denoised:
        i = next(i for i, k in enumerate(self.levels) if k.time == t.time)
        said = transition_variance(t, self.levels[i + 1]).log()
        fraction = 1.0 if self.bounded else (said + 1) / 2  # 2 fraction - 1 is what the channels say
        return replace(super().__call__(x_t, t, cond), variance_fraction=torch.zeros_like(x_t) + fraction)


@pytest.mark.parametrize("variance", ["learned-range", "learned"])
def test_bound_with_a_learned_variance(variance) -> None:
    process = VP()
    model = WithLogVariance(process, 0.1, 0.3, (1, 4, 4))
    grid = process.time_of(torch.linspace(-4, 6, 7, dtype=F64))
    model.levels, model.bounded = (
        process.scales(torch.cat([grid, grid.new_zeros(1)])).unbind(),
        variance != "learned",
    )
    x = torch.linspace(-1, 1, 32, dtype=F64).reshape(2, 1, 4, 4)
    found = variational_bound(model, x, grid=grid, variance=variance)
    large = variational_bound(model, x, grid=grid, variance="fixed-large")
    assert torch.allclose(found.terms[:, :-1], large.terms[:, :-1])  # the last is the posterior variance there
    small = variational_bound(model, x, grid=grid, variance="fixed-small")
    assert torch.equal(large.terms[:, -1], small.terms[:, -1])


def test_bound_refusals() -> None:
    model = mixture(PROCESSES.create("vp"))
    with pytest.raises(ValueError, match="two times"):
        variational_bound(model, data(model), 1)
    with pytest.raises(ValueError, match="unknown variance"):
        variational_bound(model, data(model), 5, variance="small")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a network that learned its variance"):
        variational_bound(model, data(model), 5, variance="learned-range")
