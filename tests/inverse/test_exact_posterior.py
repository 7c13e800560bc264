"""Exact posteriors of Gaussian mixtures: against recorded values, by numerical integration, and by Bayes' rule."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from dinit.diffusion import PROCESSES
from dinit.inverse import Matrix
from dinit.models.analytic import MixtureDenoiser
from dinit.models.gaussian_mixture import GaussianMixture
from dinit.samplers import SAMPLERS

F64 = torch.float64
GOLDEN = Path(__file__).parents[1] / "golden" / "posterior" / "problem_subset.safetensors"


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


class Problem:
    """A recorded problem: everything is read from the file's metadata and tensors."""

    def __init__(self, path: Path, name: str) -> None:
        with safe_open(path, "pt") as file:
            self.tensors = {
                key.removeprefix(f"{name}/"): file.get_tensor(key)
                for key in file.keys()  # noqa: SIM118
                if key.startswith(f"{name}/")
            }
            self.shape = tuple(json.loads(file.metadata()[f"{name}/shape"]))
        t = self.tensors
        self.prior = GaussianMixture.low_rank(
            t["prior/weights"], t["prior/means"], t["prior/diag"], t["prior/factors"], self.shape
        )

    def posteriors(self) -> Iterator[tuple[GaussianMixture, str]]:
        """Our posterior and the prefix of the recorded one."""
        for key in self.tensors:
            if key.startswith("posterior/") and key.endswith("/weights"):
                _, operator, noise, row, _ = key.split("/")
                y = self.tensors[f"y/{operator}/{noise}"][int(row)]
                found = self.prior.posterior(self.tensors[f"operator/{operator}"], y, float(noise))
                yield found, key.removesuffix("weights")


def problems() -> list[str]:
    with safe_open(GOLDEN, "pt") as file:
        return sorted({key.split("/")[0] for key in file.keys()})  # noqa: SIM118


@pytest.fixture(scope="module", params=problems())
def problem(request: pytest.FixtureRequest) -> Problem:
    return Problem(GOLDEN, request.param)


def small(seed: int = 0, components: int = 3, n: int = 4, shape: tuple[int, ...] = (1, 2, 2)) -> GaussianMixture:
    weights, factors = randn(seed + 1, components).exp(), randn(seed + 2, components, n, n) / 2
    return GaussianMixture(weights, randn(seed, components, n), factors @ factors.mT, shape)


def test_recorded_posteriors(problem: Problem) -> None:
    """Weights, means and covariances to the file's rounding; its samples have our mean and log-density."""
    count = 0
    for found, prefix in problem.posteriors():
        t = problem.tensors
        torch.testing.assert_close(found.weights, t[f"{prefix}weights"], atol=1e-10, rtol=1e-8)
        torch.testing.assert_close(found.means, t[f"{prefix}means"], atol=1e-9, rtol=1e-9)
        if f"{prefix}covs" in t:
            torch.testing.assert_close(found.covariances.float(), t[f"{prefix}covs"], atol=1e-6, rtol=1e-5)
        if f"{prefix}samples" in t:
            samples = t[f"{prefix}samples"].double()
            off = (samples.mean(0) - found.mean).norm() / found.covariance.trace().sqrt()
            assert off < 4 / len(samples) ** 0.5
            energy = 0.5 * len(found.mean)  # of -log p of normal samples, with standard deviation sqrt(n / 2)
            best = found.log_prob(samples[:1] * 0 + found.means[found.weights.argmax()])
            drop = (best - found.log_prob(samples)).mean()
            assert abs(float(drop) - energy) < 0.25 * energy
        count += 1
    assert count >= 2


def test_noise_of_zero_holds_the_measurement(problem: Problem) -> None:
    """Posteriors for sigma_y = 0: samples give y to rounding, and they are the limit of small noise."""
    generator = torch.Generator().manual_seed(0)
    cases = [key for key in problem.tensors if key.startswith("y/") and float(key.split("/")[2]) == 0]
    assert cases
    for key in cases:
        a, y = problem.tensors[f"operator/{key.split('/')[1]}"], problem.tensors[key][1]
        exact = problem.prior.posterior(a, y, 0.0)
        samples = exact.sample(8, generator).flatten(1)
        assert (samples @ a.T - y).abs().max() < 1e-12 * max(1, float(y.abs().max()))
        near = problem.prior.posterior(a, y, 1e-5)
        torch.testing.assert_close(exact.weights, near.weights, atol=1e-5, rtol=0)
        torch.testing.assert_close(exact.means, near.means, atol=1e-6, rtol=0)
        torch.testing.assert_close(exact.covariances, near.covariances, atol=1e-8, rtol=0)


@pytest.mark.parametrize("noise_std", [0.02, 0.4])
def test_moments_by_numerical_integration(noise_std: float) -> None:
    """Two dimensions, on a grid: p(x) N(y; A x, noise_std^2) has the posterior's mean, covariance and weights."""
    prior = small(n=2, shape=(1, 1, 2))
    a, y = torch.tensor([[1.0, -0.5]], dtype=F64), torch.tensor([0.3], dtype=F64)
    line = torch.linspace(-5, 5, 801, dtype=F64)
    x = torch.cartesian_prod(line, line)
    log_p = prior.log_joint(x) - ((y - x @ a.T) ** 2).sum(-1, keepdim=True) / (2 * noise_std**2)
    p = log_p.exp()
    p = p / p.sum()
    mean = (p.sum(1)[:, None] * x).sum(0)
    covariance = torch.einsum("p,pi,pj->ij", p.sum(1), x - mean, x - mean)
    found = prior.posterior(a, y, noise_std)
    torch.testing.assert_close(found.weights, p.sum(0), atol=1e-8, rtol=0)
    torch.testing.assert_close(found.mean, mean, atol=1e-8, rtol=0)
    torch.testing.assert_close(found.covariance, covariance, atol=1e-8, rtol=0)


@pytest.mark.parametrize(("first", "second"), [(0.3, 0.1), (0.0, 0.2), (0.2, 0.0)])
def test_posterior_of_a_posterior(first: float, second: float) -> None:
    """Two measurements one after the other are both at once, each divided by its noise."""
    prior, a, b, y, z = small(), randn(7, 2, 4), randn(8, 1, 4), randn(9, 2), randn(10, 1)
    both = prior.posterior(a, y, first).posterior(b, z, second)
    floor = 1e-6  # stands for a noise of 0
    wide = torch.cat([a / max(first, floor), b / max(second, floor)])
    at_once = prior.posterior(wide, torch.cat([y / max(first, floor), z / max(second, floor)]), 1.0)
    torch.testing.assert_close(both.weights, at_once.weights, atol=1e-4, rtol=0)
    torch.testing.assert_close(both.mean, at_once.mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(both.covariance, at_once.covariance, atol=1e-4, rtol=0)
    again = prior.posterior(a, y, first).posterior(b, z, second).posterior(b, z, second)
    halved = prior.posterior(a, y, first).posterior(b, z, second / 2**0.5)
    torch.testing.assert_close(again.means, halved.means, atol=1e-9, rtol=0)
    torch.testing.assert_close(again.weights, halved.weights, atol=1e-9, rtol=0)


def test_components_without_the_measurement_in_their_support() -> None:
    """Points at 0 and 1: a measurement without noise leaves one of them; a component with more room loses to it."""
    means = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]], dtype=F64)
    covariances = torch.zeros(3, 2, 2, dtype=F64)
    covariances[2, 0, 0] = 1
    prior = GaussianMixture(torch.ones(3), means, covariances)
    found = prior.posterior(torch.eye(2, dtype=F64)[:1], torch.tensor([1.0], dtype=F64), 0.0)
    torch.testing.assert_close(found.weights, torch.tensor([0.0, 1.0, 0.0], dtype=F64), atol=1e-6, rtol=0)


def test_rows_are_posteriors_of_their_own() -> None:
    prior, a, y = small(), randn(7, 2, 4), randn(8, 3, 2)
    together = prior.posterior(a, y, 0.2)
    denoiser, x_t = together.denoiser(PROCESSES.create("vp")), randn(9, 6, 1, 2, 2)
    x0 = denoiser(x_t, 0.5, denoiser.condition(None, 6)).x0
    drawn = together.sample(4, torch.Generator().manual_seed(0))
    assert drawn.shape == (3, 4, 1, 2, 2)
    for i in range(3):
        alone = prior.posterior(Matrix(a), y[i : i + 1], 0.2)
        row = together.row(i)
        for name in ("weights", "means", "mean", "covariance"):
            torch.testing.assert_close(getattr(row, name), getattr(alone, name))
            if name != "covariances":
                torch.testing.assert_close(getattr(together, name)[i], getattr(alone, name))
        other = alone.denoiser(denoiser.process)
        torch.testing.assert_close(x0[i::3], other(x_t[i::3], 0.5, other.condition(None, 2)).x0)


@pytest.mark.parametrize("process", ["vp", "ve", "flow", "edm"])
def test_the_denoiser_is_the_posterior_mean(process: str) -> None:
    """E[x0 | x_t] is the mean of the posterior of x_t = alpha x0 + sigma eps, and its Jacobian the covariance."""
    path = PROCESSES.create(process)
    law = small().posterior(randn(7, 2, 4), randn(8, 2), 0.1)
    denoiser = law.denoiser(path)
    k = path.scales(0.6)
    x_t = (randn(9, 2, 1, 2, 2) * k.sigma + k.alpha * law.mean.reshape(1, 2, 2)).requires_grad_()
    of_x_t = law.posterior(k.alpha * torch.eye(4, dtype=F64), x_t.detach(), float(k.sigma))
    cond = denoiser.condition(None, 2)
    x0 = denoiser(x_t, 0.6, cond).x0
    torch.testing.assert_close(x0.detach().flatten(1), of_x_t.mean)
    torch.testing.assert_close(denoiser(x_t, torch.tensor([0.6, 0.6], dtype=F64), cond).x0, x0)
    torch.testing.assert_close(denoiser(x_t.float(), 0.6, cond).x0.double(), x0, atol=1e-4, rtol=1e-4)
    rows = [torch.autograd.grad(x0.flatten(1)[:, i].sum(), x_t, retain_graph=True)[0].flatten(1) for i in range(4)]
    torch.testing.assert_close(torch.stack(rows, 1), k.alpha / k.sigma**2 * of_x_t.covariance)
    score = torch.autograd.grad(denoiser.log_prob(x_t, 0.6).sum(), x_t)[0]  # Tweedie's formula
    torch.testing.assert_close((x_t + k.sigma**2 * score) / k.alpha, x0)


def test_classes_and_weights_as_in_the_diagonal_mixture() -> None:
    """MixtureDenoiser and the denoiser of its `mixture`, conditional and not, and through a posterior of pixels."""
    means, variances, path = randn(0, 4, 1, 2, 2), randn(1, 4, 1, 2, 2).exp() / 10, PROCESSES.create("vp")
    classes = torch.tensor([0, 1, 1, 2])
    diagonal = MixtureDenoiser(path, means, variances, torch.tensor([0.1, 0.2, 0.3, 0.4]), classes)
    full = diagonal.mixture.denoiser(path, classes)
    x_t, labels = randn(2, 4, 1, 2, 2), torch.tensor([0, 1, 2, 3])
    one, other = (d(x_t, 0.5, d.condition(labels, 4)).x0 for d in (diagonal, full))
    torch.testing.assert_close(one, other)
    a, b = (d.log_prob(x_t, 0.5, d.condition(labels, 4)) for d in (diagonal, full))
    torch.testing.assert_close(a, b)
    seen = diagonal.mixture.posterior(torch.eye(4, dtype=F64)[:2], means[1].flatten()[:2], 0.1)
    given = seen.denoiser(path, classes)
    assert not torch.allclose(given(x_t, 0.5, given.condition(labels, 4)).x0, one)


def test_a_run_on_a_singular_posterior_is_finite_and_right() -> None:
    law = small().posterior(randn(7, 2, 4), randn(8, 2), 0.0)
    denoiser = law.denoiser(PROCESSES.create("flow"))
    out = SAMPLERS.create("dpmpp-2m").sample(denoiser, randn(9, 4000, 1, 2, 2), 60).flatten(1)
    assert (out @ randn(7, 2, 4).T - randn(8, 2)).abs().max() < 1e-6
    assert (out.mean(0) - law.mean).norm() < 0.05 * law.covariance.trace().sqrt()
    torch.testing.assert_close(out.T.cov(), law.covariance, atol=0.05 * float(law.covariance.trace()), rtol=0)


def test_draws_have_the_moments_and_responsibilities_the_weights() -> None:
    law = small().posterior(randn(7, 1, 4), randn(8, 1), 0.3)
    drawn = law.sample(20_000, torch.Generator().manual_seed(1)).flatten(1)
    assert (drawn.mean(0) - law.mean).abs().max() < 0.03
    assert (drawn.T.cov() - law.covariance).abs().max() < 0.05
    torch.testing.assert_close(law.responsibilities(drawn).mean(0), law.weights, atol=0.01, rtol=0)
    torch.testing.assert_close(small().responsibilities(drawn[:50]), law.responsibilities(drawn[:50]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": torch.ones(2)}, "weights"),
        ({"weights": torch.tensor([1.0, -1, 1])}, "at least 0"),
        ({"covariances": torch.ones(3, 2, 2)}, "covariances"),
        ({"covariances": torch.arange(48.0).reshape(3, 4, 4)}, "symmetric"),
        ({"shape": (1, 3)}, "shape"),
    ],
)
def test_what_is_no_mixture(change: dict[str, Tensor], message: str) -> None:
    law = small()
    parts = {"weights": law.weights, "means": law.means, "covariances": law.covariances, "shape": law.shape}
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**{**parts, **change})


def test_what_is_no_measurement() -> None:
    law = small()
    with pytest.raises(ValueError, match="A must be"):
        law.posterior(torch.eye(3), torch.zeros(3), 0.1)
    with pytest.raises(ValueError, match="noise_std"):
        law.posterior(torch.eye(4), torch.zeros(4), -0.1)
    with pytest.raises(ValueError, match="semidefinite"):
        GaussianMixture(law.weights, law.means, -law.covariances).sample(1, torch.Generator())
    several = law.posterior(torch.eye(4), torch.zeros(2, 4), 0.1).denoiser(PROCESSES.create("vp"))
    with pytest.raises(ValueError, match="do not fit a batch of 3"):
        several(torch.zeros(3, 1, 2, 2), 0.5, several.condition(None, 3))
