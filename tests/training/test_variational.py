"""The term that trains a learned variance, against divergences of torch.distributions and known optima."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from dinit.data.digits import Digits
from dinit.data.pixels import from_uint8
from dinit.diffusion import BackboneDenoiser, Process
from dinit.diffusion.continuous import VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.diffusion.parameterization import Epsilon
from dinit.likelihood.bound import discretised_log_prob, variational_bound
from dinit.models.base import BACKBONES, Backbone
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.train import train
from dinit.samplers.noise import NoiseSource
from dinit.training import WEIGHTINGS, Objective
from dinit.training.losses.bound import variational_bits
from dinit.training.losses.times import UniformTimes
from dinit.training.network import TrainingNetwork
from dinit.training.objective import NetworkOutput
from dinit.training.recipe.file import RecipeError, parse_recipe

CHAIN = VPDiscrete(num_steps=50)


def batch(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean images of 256 levels, posterior means near to them, and fractions."""
    generator = torch.Generator().manual_seed(3)
    x0 = torch.randint(0, 256, (count, 2, 3, 3), generator=generator) / 127.5 - 1
    noise = torch.randn(x0.shape, generator=generator)
    return x0, (x0 + 0.05 * noise).clamp(-1, 1), torch.rand(x0.shape, generator=generator)


def test_term_is_the_divergence_of_ddpms_posterior_from_the_networks() -> None:
    """Ho et al. 2020, Eq. 7, from the betas; Nichol & Dhariwal 2021, Eq. 15, between beta-tilde and beta."""
    levels = torch.tensor([1, 2, 17, 49])
    x0, mean, fraction = batch(4)
    mean = x0 + 100 * (mean - x0)  # so far off that the last level has something to measure
    found = variational_bits(CHAIN, (levels + 1).double() / 50, x0, mean, fraction)
    beta = torch.linspace(1e-4 * 20, 0.02 * 20, 50, dtype=torch.float64)
    alpha_bar = (1 - beta).cumprod(0)
    for i, level in enumerate(levels.tolist()):
        before, b = alpha_bar[level - 1], beta[level]
        small = b * (1 - before) / (1 - alpha_bar[level])
        weight = before.sqrt() * b / (1 - alpha_bar[level])  # of x0 in the mean; that of x_t is the same in both
        log_variance = fraction[i] * b.log() + (1 - fraction[i]) * small.log()
        right = Normal(weight * x0[i].double(), small.sqrt())
        ours = Normal(weight * mean[i].double(), (log_variance / 2).exp())
        expected = float(kl_divergence(right, ours).mean()) / math.log(2)
        assert float(found[i]) == pytest.approx(expected, rel=1e-4)


def test_last_step_is_the_decoders() -> None:
    x0, mean, fraction = batch(1)
    beta = torch.linspace(1e-4 * 20, 0.02 * 20, 50, dtype=torch.float64)
    alpha_bar = (1 - beta).cumprod(0)
    small = beta[1] * (1 - alpha_bar[0]) / (1 - alpha_bar[1])
    std = ((fraction * beta[0].log() + (1 - fraction) * small.log()) / 2).exp()
    expected = -float(discretised_log_prob(x0.double(), mean.double(), std).mean()) / math.log(2)
    for t in (1 / 50, 1.4 / 50):
        found = variational_bits(CHAIN, torch.tensor([t], dtype=torch.float64), x0, mean, fraction)
        assert t > 1 / 50 or float(found) == pytest.approx(expected, rel=1e-4)
        assert bool(found.isfinite())


def test_a_network_that_knows_x0_learns_the_smaller_variance_and_one_that_errs_a_larger() -> None:
    """At the true x0 the divergence is least, 0, at fraction 0; an error of the mean asks for more variance."""
    x0, _, _ = batch(3)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    zero = torch.zeros_like(x0, requires_grad=True)
    bits = variational_bits(CHAIN, t, x0, x0, zero)
    torch.testing.assert_close(bits, torch.zeros(3), rtol=0, atol=1e-6)
    (slope,) = torch.autograd.grad(variational_bits(CHAIN, t, x0, x0, zero + 0.1).sum(), zero)
    assert bool((slope > 0).all())
    (slope,) = torch.autograd.grad(variational_bits(CHAIN, t, x0, x0 + 3, zero).sum(), zero)
    assert bool((slope < 0).all())


def test_terms_are_those_of_the_evaluations_bound() -> None:
    """What training estimates at one level is the bound's term there, for the same network and noise."""
    backbone = random_backbone()
    chain = VPDiscrete("cosine", num_steps=12)
    x0, _, _ = batch(2)
    x0 = torch.nn.functional.interpolate(x0[:, :1], size=8)
    labels = torch.tensor([1, 7])
    times = torch.arange(12, 0, -1, dtype=torch.float64) / 12
    source = NoiseSource.from_seed(5, 2)
    with torch.no_grad():
        denoiser = BackboneDenoiser(backbone, chain, Epsilon())
        bound = variational_bound(
            denoiser, x0, labels=labels, grid=times, variance="learned-range", noise_source=source
        )

    def losses(t: float, eps: Tensor, weight: float) -> Tensor:
        objective = Objective(chain, Epsilon(), WEIGHTINGS.create("uniform"), UniformTimes(), variational=weight)
        network = TrainingNetwork(backbone)
        return objective.losses(network, x0, labels, torch.full((2,), t, dtype=torch.float64), eps).detach()

    for i, t in enumerate(times.tolist()):
        eps = source.normal("step", i, x0)
        found = (losses(t, eps, 1.0) - losses(t, eps, 0.0)) / 12
        torch.testing.assert_close(found.double(), bound.terms[:, i], rtol=1e-3, atol=1e-5)


def random_backbone() -> Backbone:
    backbone = BACKBONES["dit"].preset("tiny", learn_sigma=True).eval()
    generator = torch.Generator().manual_seed(4)
    for p in backbone.parameters():
        torch.nn.init.normal_(p, std=0.1, generator=generator)
    return backbone


def test_bound_trains_the_variance_and_leaves_the_mean_alone() -> None:
    """The bound's gradient is only in the channels of the variance; the squared error's only in the others."""
    x0, eps, _ = batch(2)
    outputs = torch.full((2, 4, 3, 3), 0.3, requires_grad=True)
    t = torch.tensor([0.1, 0.8], dtype=torch.float64)

    def gradient(weight: float) -> Tensor:
        objective = Objective(CHAIN, Epsilon(), WEIGHTINGS.create("uniform"), UniformTimes(), variational=weight)
        loss = objective.losses(lambda *_: NetworkOutput(outputs), x0, torch.zeros(2).long(), t, eps)
        return torch.autograd.grad(loss.sum(), outputs)[0]

    plain, both = gradient(0.0), gradient(0.5)
    assert torch.equal(plain[:, :2], both[:, :2])
    assert bool((plain[:, 2:] == 0).all())
    assert bool((both[:, 2:] != 0).all())


RECIPE = """
name: tiny
data: {name: digits}
backbone: {name: dit, preset: tiny, learn_sigma: true}
process: {name: vp-discrete, num_steps: 100}
parameterization: epsilon
tracker: null
optimizer: {lr: 3e-3}
ema: {decay: 0.9}
training: {steps: 60, batch_size: 64, checkpoint_every: 60}
"""


def midway(module: Backbone, inputs: object, output: Tensor) -> Tensor:
    """The same means, with variances midway (in the logarithm) between the two that DDPM knows."""
    mean, _ = output.chunk(2, dim=1)
    return torch.cat([mean, torch.zeros_like(mean)], dim=1)


def test_a_trained_variance_lowers_the_bound(tmp_path: Path) -> None:
    """With the squared error alone the variance stays midway; with the bound it is nearer to the right one.

    Both variances are measured with one network's means: those of two trainings differ by more from seed to seed.
    """
    x0 = from_uint8(Digits("test").uint8_images()[:64])
    times = torch.arange(100, 0, -1, dtype=torch.float64) / 100

    def bound(pipe: Pipeline) -> float:
        return float(variational_bound(pipe.denoiser(), x0, grid=times, variance="learned-range").total.mean())

    gains = []
    for weight in (0.0, 0.01):
        recipe = parse_recipe(RECIPE + f"loss: {{variational: {weight}}}\n")
        train(recipe, tmp_path / str(weight), progress=False)
        pipe = Pipeline.from_pretrained(tmp_path / str(weight) / "pipeline")
        own = bound(pipe)
        with pipe.backbone.register_forward_hook(midway):
            gains.append(bound(pipe) - own)
    assert gains[0] == 0
    assert gains[1] > 0.1  # bits a pixel, of 6.8; 0.35 to 0.43 with four seeds
    drawn = pipe([3], sampler={"name": "ddpm", "variance": "learned-range"}, steps=4, output_type="pt")
    assert bool(drawn.images.isfinite().all())


def test_a_recipe_without_a_chain_is_refused() -> None:
    text = RECIPE.replace("{name: vp-discrete, num_steps: 100}", "vp")
    with pytest.raises(RecipeError, match=r"learn_sigma: true .* VP is not one"):
        parse_recipe(text)


@pytest.mark.parametrize("process", [LinearFlow(), VP()], ids=str)
def test_a_process_without_levels_is_refused(process: Process) -> None:
    objective = Objective(process, Epsilon(), WEIGHTINGS.create("uniform"), UniformTimes(), 0.9)
    x0, eps, _ = batch(2)
    with pytest.raises(ValueError, match=f"{type(process).__name__} is not one"):
        objective.losses(
            lambda x, *_: NetworkOutput(torch.cat([x, x], 1)),
            x0,
            torch.zeros(2).long(),
            torch.tensor([0.2, 0.3]).double(),
            eps,
        )
