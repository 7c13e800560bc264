"""Posterior samplers against exact posteriors of Gaussians, whose mean and covariance are known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PROCESSES, Denoiser
from dinit.inverse import DAPS, DDRM, OPERATORS, POSTERIOR_SAMPLERS, TDS, Matrix, Measurement, PosteriorSampler
from dinit.inverse.samplers.replacement import overwrite
from dinit.inverse.samplers.tds import Particles
from dinit.models import GaussianMixture
from dinit.samplers import DDIM, DDPM, NoiseSource
from dinit.samplers.base import StepDenoiser, StepNoise
from dinit.samplers.guidance import GUIDANCES

SHAPE = (1, 2, 2)
PROCESS_NAMES = ["vp", "edm", "flow"]
HALF = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]], dtype=torch.float64)
MIXING = torch.tensor([[1.0, 1, 0, 0], [0, 1, -1, 0.5]], dtype=torch.float64)


def correlated() -> GaussianMixture:
    """A Gaussian whose pixels say much of each other."""
    g = torch.Generator().manual_seed(3)
    factor = torch.randn(4, 4, generator=g, dtype=torch.float64) / 2
    covariance = factor @ factor.T + 0.2 * torch.eye(4, dtype=torch.float64)
    mean = torch.tensor([0.3, -0.2, 0.1, 0.5], dtype=torch.float64)
    return GaussianMixture(torch.ones(1), mean[None], covariance[None], SHAPE)


def two_modes() -> GaussianMixture:
    """A mixture of two Gaussians that the first row of MIXING can tell apart."""
    means = torch.tensor([[1.0, 0.5, -0.5, 0.2], [-0.8, -0.5, 0.4, 0.0]], dtype=torch.float64)
    covariances = 0.15 * torch.eye(4, dtype=torch.float64).repeat(2, 1, 1) + 0.05
    return GaussianMixture(torch.tensor([0.4, 0.6]), means, covariances, SHAPE)


def measured(matrix: Tensor, noise_std: float, y: tuple[float, ...] = (0.9, -0.4)) -> Measurement:
    return Measurement(OPERATORS.create("matrix", A=matrix), torch.tensor([y], dtype=torch.float64), noise_std)


def noise(count: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return NoiseSource.from_seed(0, count).normal("initial", 0, torch.empty(count, *SHAPE, dtype=dtype))


def sampler(spec: str, measurement: Measurement | None) -> PosteriorSampler:
    return replace(POSTERIOR_SAMPLERS.create(spec), measurement=measurement)


def errors(samples: Tensor, exact: GaussianMixture) -> tuple[float, float]:
    """Error of the mean in standard deviations, and of the covariance, both root mean squares."""
    x = samples.flatten(1)
    scale = exact.covariance.diagonal().clamp(min=1e-2).sqrt()
    covariance = (torch.cov(x.T) - exact.covariance) / (scale[:, None] * scale)
    return float(((x.mean(0) - exact.mean) / scale).square().mean().sqrt()), float(
        covariance.square().mean().sqrt()
    )


def run(
    spec: str, data: GaussianMixture, seen: Measurement, process: str = "vp", count: int = 1500, steps: int = 40
) -> Tensor:
    denoiser = data.denoiser(PROCESSES.create(process))
    return sampler(spec, seen).sample(denoiser, noise(count), steps)


def posterior(data: GaussianMixture, seen: Measurement) -> GaussianMixture:
    matrix: Any = seen.operator
    return data.posterior(matrix.A, seen.y[0], seen.noise_std)


# Bounds on the errors of mean and covariance: 1.3 to 1.5 times what 500 samples of 30 steps have on the worst of
# the three processes; exact samples have 0.05 and 0.08. The rest is bias of the method and of the solver.
ACCURACY = {
    "replace": (0.36, 0.19),
    "repaint:resamples=4,jump_length=4": (0.24, 0.19),
    "ddrm": (0.27, 0.25),
    "daps:langevin_steps=12": (0.35, 0.19),
    "red-diff": (0.42, 0.9),  # one mode: it has no spread
    "tds:particles=8": (0.1, 0.31),
    "tds:particles=8,covariance=jacobian,iterations=2": (0.1, 0.31),
    "mcmc:iterations=25": (0.28, 0.22),
}


def test_every_posterior_sampler_is_measured_here() -> None:
    assert {spec.partition(":")[0] for spec in ACCURACY} == set(POSTERIOR_SAMPLERS)


@pytest.mark.parametrize("process", PROCESS_NAMES)
@pytest.mark.parametrize("spec", ACCURACY)
def test_samples_are_near_the_exact_posterior(spec: str, process: str) -> None:
    seen = measured(MIXING, 0.1)
    samples = run(spec, correlated(), seen, process, count=500, steps=30)
    of_mean, of_covariance = errors(samples, posterior(correlated(), seen))
    assert of_mean < ACCURACY[spec][0]
    assert of_covariance < ACCURACY[spec][1]


@pytest.mark.parametrize("spec", ["replace:resamples={}", "repaint:jump_length=3,resamples={}"])
def test_replacement_comes_nearer_to_the_posterior_with_every_resample(spec: str) -> None:
    seen = measured(HALF, 0.0)
    exact = posterior(correlated(), seen)
    once, often = (
        errors(run(spec.format(count), correlated(), seen, count=400, steps=60), exact)[0] for count in (1, 6)
    )
    assert once > 0.13
    assert often < 0.12


def test_particles_come_nearer_to_the_posterior_with_their_number() -> None:
    """On a mixture, whose modes one particle cannot weigh."""
    seen = measured(MIXING, 0.2)
    exact = posterior(two_modes(), seen)
    found = [errors(run(f"tds:particles={k}", two_modes(), seen, count=400, steps=120), exact) for k in (1, 8, 64)]
    assert found[0][1] > found[1][1] > found[2][1]
    assert found[0][0] > found[2][0]
    assert found[2][0] < 0.13
    assert found[2][1] < 0.13


@pytest.mark.parametrize("options", ["isotropic", "jacobian,iterations=1", "jacobian,iterations=2"])
def test_all_particles_of_one_image_are_weighted_samples(options: str) -> None:
    """Exact whatever the twist, here with y between two modes; a wrong twist or weight misses one of them."""
    data, seen = two_modes(), measured(MIXING, 0.3, (0.0, 0.1))
    exact = posterior(data, seen)
    made = sampler(f"tds:particles=1500,covariance={options}", seen)
    *_, last = made.iterate(data.denoiser(PROCESSES.create("vp")), noise(1), 100)
    particles, weights = last.state.x.flatten(1), torch.softmax(last.state.log_weights[:, 0], 0)
    mean = weights @ particles
    covariance = torch.cov(particles.T, aweights=weights)
    scale = exact.covariance.diagonal().sqrt()
    assert torch.allclose(mean / scale, exact.mean / scale, rtol=0, atol=0.1)
    assert float(((covariance - exact.covariance) / (scale[:, None] * scale)).abs().max()) < 0.17
    assert bool((last.x_s == particles.reshape(-1, *SHAPE)).flatten(1).all(1).any()), "the sample is one of them"


def test_particles_with_the_covariance_of_the_jacobian_move_as_mmps() -> None:
    """The slope is MMPS's correction of x0, and the twist its Gaussian, but for a constant."""
    data, seen = two_modes(), measured(MIXING, 0.2)
    denoiser, x = data.denoiser(PROCESSES.create("vp")), noise(3)
    t = denoiser.process.scales(0.4)
    step = StepDenoiser(denoiser, denoiser.condition(None, 3))
    made = TDS(seen, particles=1, covariance="jacobian", iterations=2)
    zero = torch.zeros(1, 3, dtype=torch.float64)
    d, twist, slope = made._twisted(step, Particles(x, zero, zero, zero[0], step.cond), t, final=False)
    mmps = GUIDANCES.create({"name": "mmps", "measurement": seen, "iterations": 2}).wrap(denoiser)
    assert torch.allclose(d.x0 + slope, mmps(x, t, step.cond).x0, rtol=0, atol=1e-12)
    alone = denoiser.condition(None, 1)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v: denoiser(v, t, alone).x0, x[i : i + 1])
        covariance = float(t.sigma**2 / t.alpha) * jacobian.reshape(4, 4)
        spread = MIXING @ covariance @ MIXING.T + 0.04 * torch.eye(2, dtype=torch.float64)
        rest = seen.y[0] - MIXING @ d.x0[i].flatten()
        assert float(twist[0, i]) == pytest.approx(float(-rest @ torch.linalg.solve(spread, rest) / 2), abs=1e-10)


def test_the_evidence_of_particles_is_that_of_the_measurement() -> None:
    """Weights estimate p(y) of DDPM's own law without bias: the same for any number of particles."""
    data, seen = two_modes(), measured(MIXING, 0.2)
    spread = MIXING @ data.covariances @ MIXING.T + 0.04 * torch.eye(2, dtype=torch.float64)
    log_p = float(GaussianMixture(data.weights, data.means @ MIXING.T, spread).log_prob(seen.y))
    denoiser = data.denoiser(PROCESSES.create("vp"))
    found = {}
    for count in (2, 16):
        *_, last = sampler(f"tds:particles={count}", seen).iterate(denoiser, noise(600 // count), 120)
        evidence = last.state.log_evidence
        found[count] = float(torch.logsumexp(evidence, 0)) - math.log(len(evidence))
    assert abs(found[2] - found[16]) < 0.25
    assert found[16] == pytest.approx(log_p, abs=0.3)  # the steps of DDPM cost 0.2


@pytest.mark.parametrize("process", PROCESS_NAMES)
@pytest.mark.parametrize("spec", ["replace", "repaint:resamples=2,jump_length=3", "ddrm"])
def test_known_pixels_are_those_of_the_measurement(spec: str, process: str) -> None:
    mask = torch.tensor([[[[1.0, 0.0], [1.0, 1.0]]]])
    truth = correlated().sample(3, torch.Generator().manual_seed(1)).float()
    seen = Measurement(OPERATORS.create("mask", hidden=1 - mask[0, 0]), truth * mask, 0.0)
    samples = sampler(spec, seen).sample(
        correlated().denoiser(PROCESSES.create(process)), noise(3, torch.float32), 8
    )
    assert samples.dtype == torch.float32
    assert torch.allclose(samples * mask, truth * mask, rtol=0, atol=3e-7)
    assert float((samples - truth).abs().max()) > 0.01


def test_pixels_that_are_not_seen_are_those_of_the_plain_run() -> None:
    """With independent pixels nothing is known of them, whatever is known of the others."""
    independent = GaussianMixture(torch.ones(1), torch.zeros(1, 4), 0.5 * torch.eye(4)[None], SHAPE)
    denoiser = independent.denoiser(PROCESSES.create("vp"))
    for spec in ("replace", "ddrm", "ddrm:eta=0.3,eta_b=0.5"):
        seen, plain = (sampler(spec, one).sample(denoiser, noise(5), 9) for one in (measured(HALF, 0.1), None))
        assert torch.allclose(seen[:, :, 1], plain[:, :, 1], rtol=0, atol=1e-12), spec
        assert not torch.allclose(seen[:, :, 0], plain[:, :, 0], atol=1e-2), spec


def test_without_a_measurement_they_are_plain_samplers() -> None:
    denoiser = correlated().denoiser(PROCESSES.create("vp"))
    expected = DDIM().sample(denoiser, noise(4), 10)
    for spec in ("replace:solver=ddim", "repaint:solver=ddim,resamples=1", "ddrm:eta=0"):
        assert torch.allclose(sampler(spec, None).sample(denoiser, noise(4), 10), expected, rtol=0, atol=1e-12), (
            spec
        )
    samples = sampler("tds:particles=2", None).sample(denoiser, noise(600), 50)
    assert max(errors(samples, correlated())) < 0.25
    again = sampler("repaint:resamples=3,jump_length=2", None).sample(denoiser, noise(600), 50)
    assert max(errors(again, correlated())) < 0.25


@pytest.mark.parametrize("spec", ACCURACY)
def test_an_image_does_not_depend_on_its_batch(spec: str) -> None:
    denoiser = correlated().denoiser(PROCESSES.create("flow"))
    y = torch.tensor([[0.9, -0.4], [0.1, 0.2], [-1.0, 0.5]], dtype=torch.float64)
    seen = Measurement(OPERATORS.create("matrix", A=MIXING), y, 0.1)
    source = NoiseSource.from_seed(5, 3)
    start = source.normal("initial", 0, torch.empty(3, *SHAPE, dtype=torch.float64))
    together = sampler(spec, seen).sample(denoiser, start, 6, noise_source=source)
    one = sampler(spec, seen).rows(slice(1, 2))
    alone = one.sample(denoiser, start[1:2], 6, noise_source=NoiseSource(source.keys[1:2]))
    assert torch.allclose(together[1:2], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("spec", ACCURACY)
def test_evaluations_are_those_that_are_claimed(spec: str) -> None:
    denoiser = correlated().denoiser(PROCESSES.create("vp"))
    made = sampler(spec, measured(MIXING, 0.1))
    *_, last = made.iterate(denoiser, noise(2), 8)
    if made.claims().cost_depends_on == "steps":
        assert last.nfe == made.nfe(8)
    else:  # two blocks of four steps fit, and the second ends where the state is cleaner than y
        assert 8 < last.nfe <= 8 + 2 * 3 * 4


class Refusing(Denoiser):
    """A denoiser that fails when it is evaluated."""

    num_classes, null_class, t_min = 1, True, 0.0

    def __init__(self) -> None:
        self.process = PROCESSES.create("flow")

    def __call__(self, x_t: Tensor, t: Any, cond: Any) -> Any:
        raise AssertionError("evaluated")

    def embed(self, labels: Tensor) -> Tensor:
        return labels[:, None].double()


@pytest.mark.parametrize("spec", ACCURACY)
def test_what_does_not_fit_is_refused_before_the_first_evaluation(spec: str) -> None:
    long = Measurement(OPERATORS.create("matrix", A=MIXING), torch.zeros(1, 3), 0.1)
    with pytest.raises(ValueError, match=r"y must have the shape \(B, 2\).* got \(1, 3\)"):
        sampler(spec, long).sample(Refusing(), noise(2), 4)
    rows = Measurement(OPERATORS.create("matrix", A=MIXING), torch.zeros(3, 2), 0.1)
    with pytest.raises(ValueError, match="y has 3 rows for 2 images"):
        sampler(spec, rows).sample(Refusing(), noise(2), 4)
    if POSTERIOR_SAMPLERS.create(spec).linear_only:
        bent = Measurement(OPERATORS.create("saturate"), torch.zeros(1, *SHAPE), 0.1)
        with pytest.raises(ValueError, match="needs a linear operator, and 'saturate' is not"):
            sampler(spec, bent).sample(Refusing(), noise(2), 4)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("replace:resamples=0", "resamples must be at least 1, got 0"),
        ("replace:solver=rk45", "solver must not be adaptive, and 'rk45' is"),
        ("replace:solver=ddmp", "did you mean 'ddpm'"),
        ("repaint:jump_length=0", "jump_length must be at least 1, got 0"),
        ("ddrm:eta=1.5", r"eta must be in \[0, 1\], got 1.5"),
        ("ddrm:eta_b=-1", r"eta_b must be in \[0, 1\], got -1"),
        ("daps:ode_steps=0", "ode_steps must be at least 1, got 0"),
        ("daps:step_size=2", "step_size is a share"),
        ("red-diff:lr=0", "lr must be above 0, got 0"),
        ("tds:particles=0", "particles must be at least 1, got 0"),
        ("tds:threshold=2", r"threshold is a share of the particles, in \[0, 1\], got 2"),
        ("ddrm:rtol=1", r"rtol is a share of the largest singular value, in \[0, 1\), got 1"),
        ("red-diff:rtol=-1", r"rtol is a share of the largest singular value, in \[0, 1\), got -1"),
        ("tds:covariance=full", "covariance is one of isotropic, jacobian, got 'full'"),
        ("tds:iterations=0", "iterations must be at least 1, got 0"),
        ("mcmc:iterations=0", "iterations must be at least 1, got 0"),
        ("mcmc:step_size=0", "step_size is a share"),
    ],
)
def test_options_out_of_range(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        POSTERIOR_SAMPLERS.create(spec)


def test_replacement_by_ddpm_is_ddpm_where_nothing_is_known() -> None:
    """Its own draw of a step is the first; the known part and the way back have draws of their own."""
    denoiser = correlated().denoiser(PROCESSES.create("vp"))
    mine = sampler("replace", None)
    assert mine.claims().draws_per_step == 3
    assert DDPM().claims().draws_per_step == 1
    x = noise(2)
    first = next(iter(mine.iterate(denoiser, x, 10)))
    plain = next(iter(DDPM().iterate(denoiser, x, 10)))
    assert torch.equal(first.x_s, plain.x_s)


@pytest.mark.parametrize("noise_std", [0.0, 0.3])
def test_known_coefficients_of_a_state_have_its_noise(noise_std: float) -> None:
    """Their law is that of alpha x0 + sigma z for the measured x0, with the noise of y in it, not on top of it."""
    k = PROCESSES.create("vp").scales(0.5)
    truth, count = torch.tensor([0.9, -0.4], dtype=torch.float64), 4000
    y = truth + noise_std * noise(count)[:, 0, 0]
    seen = Measurement(OPERATORS.create("matrix", A=HALF), y, noise_std)
    z = NoiseSource.from_seed(1, count).normal("step", 0, noise(count))
    alpha, sigma = k.floats.alpha, k.floats.sigma
    start = sigma * NoiseSource.from_seed(2, count).normal("step", 0, noise(count))
    for known in (overwrite(noise(count), k, seen, z), DDRM()._start(start, k, seen)):
        pixels = known[:, 0, 0]
        assert torch.allclose(pixels.mean(0), alpha * truth, rtol=0, atol=4 * sigma / math.sqrt(count))
        assert torch.allclose(pixels.std(0), torch.full((2,), sigma, dtype=torch.float64), rtol=0.05)


def nearly_singular() -> Tensor:
    """Two rows with singular values of 2 and 2e-3."""
    rows, _ = torch.linalg.qr(MIXING.T)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    return turn @ torch.diag(torch.tensor([2.0, 2e-3], dtype=torch.float64)) @ rows.T


def test_small_singular_values_count_as_zero() -> None:
    """Their pseudo-inverse is that of torch with the same share, and the plain one has them."""
    matrix = nearly_singular()
    svd = Matrix(matrix).svd(SHAPE)
    y = torch.tensor([[0.9, -0.4]], dtype=torch.float64)
    for rtol in (0.0, 9e-4, 1.1e-3, 0.5):
        inverse = svd.to_image(svd.pseudo_inverse(svd.of_measurement(y), rtol), SHAPE).flatten(1)
        assert torch.allclose(inverse, y @ torch.linalg.pinv(matrix, rtol=rtol).T, rtol=1e-9, atol=1e-9), rtol
    assert [svd.rank(rtol) for rtol in (0.0, 9e-4, 1.1e-3, 0.5)] == [2, 2, 1, 1]


def test_ddnm_leaves_out_small_singular_values() -> None:
    denoiser, x = correlated().denoiser(PROCESSES.create("vp")), noise(3)
    t, cond = denoiser.process.scales(0.5), denoiser.condition(None, 3)
    seen = measured(nearly_singular(), 0.0)
    free = denoiser(x, t, cond).x0
    for options, rtol in ({}, 0.03), ({"rtol": 1e-4}, 1e-4):
        guided = GUIDANCES.create({"name": "ddnm", "measurement": seen, **options}).wrap(denoiser)
        change = seen.residual(free) @ torch.linalg.pinv(nearly_singular(), rtol=rtol).T
        assert torch.allclose(guided(x, t, cond).x0 - free, change.reshape(free.shape), rtol=1e-8, atol=1e-8)


def test_diffpir_leaves_out_small_singular_values() -> None:
    """Of its proximal step, argmin_d |r - A d|^2 + rho |d|^2, the part that the others give."""
    denoiser, x = correlated().denoiser(PROCESSES.create("vp")), noise(3)
    t, cond = denoiser.process.scales(0.9), denoiser.condition(None, 3)
    seen = measured(nearly_singular(), 1e-3)
    free, rho = denoiser(x, t, cond).x0, 1e-6 * float(t.alpha**2 / t.sigma**2)
    u, values, v = torch.linalg.svd(nearly_singular(), full_matrices=False)
    for options, rank in ({}, 1), ({"rtol": 1e-4}, 2):
        guided = GUIDANCES.create({"name": "diffpir", "measurement": seen, **options}).wrap(denoiser)
        gains = (values / (values**2 + rho))[:rank]
        change = seen.residual(free) @ u[:, :rank] @ torch.diag(gains) @ v[:rank]
        assert torch.allclose(guided(x, t, cond).x0 - free, change.reshape(free.shape), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
@pytest.mark.parametrize("name", ["ddrm", "red-diff"])
def test_samplers_leave_out_what_small_singular_values_measure(name: str, noise_std: float) -> None:
    """DDRM is as if it were not measured; RED-diff begins without it. With it both are far from any image."""
    denoiser = correlated().denoiser(PROCESSES.create("vp"))
    seen = measured(nearly_singular(), noise_std)
    u, values, v = torch.linalg.svd(nearly_singular(), full_matrices=False)
    first = measured(values[:1, None] * v[:1], noise_std, tuple((seen.y[0] @ u[:, :1]).tolist()))
    ends = {
        label: sampler(spec, one).sample(denoiser, noise(4), 12)
        for label, spec, one in (
            ("cut", name, seen),
            ("whole", f"{name}:rtol=0", seen),
            ("first alone", name, first),
        )
    }
    assert float(ends["whole"].abs().max()) > (4.5 if noise_std and name == "ddrm" else 20)
    assert float(ends["cut"].abs().max()) < 4
    if name == "ddrm":
        assert torch.allclose(ends["cut"], ends["first alone"], rtol=0, atol=1e-9)


def test_langevin_steps_of_daps_sample_a_gaussian() -> None:
    k = PROCESSES.create("vp").scales(0.4)
    seen = Measurement(OPERATORS.create("identity"), torch.full((1, *SHAPE), 0.5, dtype=torch.float64), 0.4)
    estimate, count = torch.full((4000, *SHAPE), -0.2, dtype=torch.float64), 4000
    source = NoiseSource.from_seed(3, count)
    made = DAPS(langevin_steps=60)
    drawn = made._langevin(estimate, k, seen.fitted(estimate), StepNoise(source, 0, 61))
    prior, of_y = (k.floats.alpha / k.floats.sigma) ** 2, 1 / 0.16
    variance = 1 / (prior + of_y)
    assert float(drawn.mean()) == pytest.approx(variance * (-0.2 * prior + 0.5 * of_y), abs=0.01)
    assert 1 < float(drawn.var()) / variance < 1.15  # steps of a tenth of the largest widen it by up to a ninth


def test_particles_of_an_image_begin_apart() -> None:
    """The first at the given state, the others at noise of their own."""
    denoiser, start = correlated().denoiser(PROCESSES.create("vp")), noise(3)
    step = StepDenoiser(denoiser, denoiser.condition(None, 3))
    k = PROCESSES.create("vp").scales(1.0)
    begun = TDS(particles=400)._begin(step, start, k, StepNoise(NoiseSource.from_seed(4, 3), 0, 2))
    particles = begun.x.reshape(400, 3, -1)
    assert torch.equal(particles[0], start.flatten(1))
    assert torch.allclose(particles.std(0), torch.full((3, 4), k.floats.sigma, dtype=torch.float64), rtol=0.15)
    assert float((particles[1] - particles[2]).abs().min()) > 0
    assert begun.cond.batch == 1200
