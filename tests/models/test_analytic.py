"""The closed-form denoisers themselves, against recorded values and by their definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dinit.diffusion import PROCESSES, Process
from dinit.diffusion.continuous import EDM, VP, LinearFlow
from dinit.diffusion.process import Scales
from dinit.models.analytic import GaussianDenoiser, MixtureDenoiser

F64 = torch.float64
GOLDEN = Path(__file__).parents[1] / "golden" / "samplers" / "gmm_oracle.safetensors"


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def mixture(process: Process) -> MixtureDenoiser:
    means, variances = randn(0, 5, 1, 2, 2), randn(1, 5, 1, 2, 2).exp() / 10
    weights, classes = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25]), torch.tensor([0, 0, 1, 1, 2])
    return MixtureDenoiser(process, means, variances, weights, classes)


def test_recorded_oracle() -> None:
    with safe_open(GOLDEN, "pt") as file:
        g = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        assert json.loads(file.metadata()["kwargs"]) == {}
    model = MixtureDenoiser(VP(), g["gmm.means"], g["gmm.var"], g["gmm.weights"], g["gmm.comp_class"])
    x, labels = g["in.x"], g["in.labels"]
    one = torch.ones_like(g["in.alpha"])
    k = Scales(one, g["in.alpha"], g["in.sigma"], one, -one)
    cond = model.condition(labels, len(x))
    d = model(x, k, cond)
    pairs = [(d.x0, g["out.x0"]), (model(x, k, cond.null()).x0, g["out.x0_uncond"])]
    pairs += [(model.log_prob(x, k, cond), g["out.logp"]), (model.log_prob(x, k), g["out.logp_uncond"])]
    noisy = g["in.sigma"] > 1e-2  # eps and score divide by sigma: below this they are rounding
    pairs += [(d.eps[noisy], g["out.eps"][noisy]), (d.score[noisy], g["out.score"][noisy])]
    pairs += [(d.velocity[noisy], g["out.velocity_dalpha1_dsigma_minus1"][noisy])]
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() < 1e-11 * max(1, float(theirs.abs().max()))


@pytest.mark.parametrize("process", PROCESSES.names())
def test_score_is_the_gradient_of_log_prob(process: str) -> None:
    model = mixture(PROCESSES.create(process))
    cond = model.condition([0, 1, 2, 3], 4)
    for t in (0.15, 0.5, 0.9, torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=F64)):
        k = model.scales(t)
        x = (randn(2, 4, 1, 2, 2) * (k.alpha + k.sigma).reshape(-1, 1, 1, 1)).requires_grad_()
        (gradient,) = torch.autograd.grad(model.log_prob(x, t, cond).sum(), x)
        score = model(x.detach(), t, cond).score
        assert ((score - gradient).abs() / (1 + gradient.abs())).max() < 1e-7


def test_log_prob_is_a_density() -> None:
    """In one dimension it integrates to one, at every noise level and for every class."""
    model = MixtureDenoiser(
        LinearFlow(),
        torch.tensor([[-1.0], [0.5], [1.2]]),
        torch.tensor([[0.02], [0.1], [0.05]]),
        torch.tensor([0.2, 0.5, 0.3]),
        torch.tensor([0, 0, 1]),
    )
    grid = torch.linspace(-8, 8, 4001, dtype=F64)[:, None]
    for t in (0.0, 0.3, 1.0):
        for label in (0, 1, 2):
            cond = model.condition([label] * len(grid), len(grid))
            total = model.log_prob(grid, t, cond).exp().sum() * (grid[1] - grid[0])
            assert abs(float(total) - 1) < 1e-6


def test_classes_see_their_components_alone() -> None:
    model = mixture(VP())
    alone = MixtureDenoiser(VP(), model.means[2:4], model.variances[2:4], torch.tensor([0.3, 0.15]))
    x = 30 * randn(3, 6, 1, 2, 2)  # far away, where a component that is merely unlikely would take over
    a = model(x, 0.001, model.condition([1] * 6, 6)).x0
    b = alone(x, 0.001, alone.condition(None, 6)).x0
    torch.testing.assert_close(a, b, rtol=1e-13, atol=0)  # a sum of six terms, four of them 0, and one of two
    whole = model(x, 0.5, model.condition([3] * 6, 6)).x0
    assert torch.equal(whole, model(x, 0.5, model.condition(None, 6)).x0)


def test_samples_have_the_moments_of_their_class() -> None:
    model, n = mixture(VP()), 40_000
    x = model.sample(torch.full((n,), 0), torch.Generator().manual_seed(4)).flatten(1)
    w = torch.tensor([1 / 3, 2 / 3], dtype=F64)[:, None]
    means, variances = model.means[:2].flatten(1), model.variances[:2].flatten(1)
    mean = (w * means).sum(0)
    variance = (w * (variances + (means - mean) ** 2)).sum(0)
    assert ((x.mean(0) - mean).abs() < 4.5 * (variance / n).sqrt()).all()
    assert ((x.var(0) / variance - 1).abs() < 4.5 * math.sqrt(2 / n)).all()


@pytest.mark.parametrize("process", PROCESSES.names())
def test_gaussian_flow_solves_its_ode(process: str) -> None:
    made = PROCESSES.create(process)
    exact = GaussianDenoiser(made, 0.3, 0.5, (1, 2, 2))
    t, s, h = 0.8, 0.3, 1e-6
    x = randn(5, 3, 1, 2, 2) * made.scales(t).sigma
    there = exact.flow(x, t, s)
    assert torch.allclose(exact.flow(there, s, t), x, rtol=1e-10, atol=1e-12)
    numeric = (exact.flow(x, t, s + h) - exact.flow(x, t, s - h)) / (2 * h)
    velocity = exact(there, s, exact.condition(None, 3)).velocity
    assert torch.allclose(numeric, velocity, rtol=1e-5, atol=1e-5)


def test_gaussian_posterior_mean_by_hand() -> None:
    exact = GaussianDenoiser(EDM(), 0.3, 0.5, (1, 1, 1))
    x = torch.tensor([1.3], dtype=F64).reshape(1, 1, 1, 1)
    # sigma = 80 t = 1: 0.3 + 0.25 / (0.25 + 1) (1.3 - 0.3)
    assert math.isclose(float(exact(x, 1 / 80, exact.condition(None, 1)).x0), 0.5, rel_tol=1e-12)
    assert math.isclose(float(exact.log_prob(x, 1 / 80)), -0.5 / 1.25 - math.log(2 * math.pi * 1.25) / 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variances": torch.ones(2, 3)}, "means' shape"),
        ({"weights": torch.ones(3)}, "one entry for each of 2"),
        ({"component_class": torch.tensor([0])}, "one entry for each of 2"),
        ({"component_class": torch.tensor([0, 2])}, r"classes \[1\] have no component"),
    ],
)
def test_refusals(arguments: dict[str, Tensor], message: str) -> None:
    means = torch.zeros(2, 4)
    with pytest.raises(ValueError, match=message):
        MixtureDenoiser(VP(), means, **{"variances": torch.ones(2, 4), **arguments})


@pytest.mark.parametrize("t_max", [1.0, 0.7])
def test_both_keep_their_largest_time(t_max: float) -> None:
    means = torch.zeros(2, 1, 2, 2)
    for model in (
        GaussianDenoiser(VP(), 0.3, 0.5, (1, 2, 2), t_max=t_max),
        MixtureDenoiser(VP(), means, means + 1, t_max=t_max),
    ):
        assert model.t_max == t_max
