"""The variational bound against tables of a chain's betas, written out as guided-diffusion's are."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Scales
from dinit.diffusion.discrete import VPDiscrete
from dinit.likelihood.bound import variational_bound
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers import RecordedNoise
from dinit.samplers.grids.respacing import Respaced

SHAPE, MEAN, STD = (1, 3, 3), 0.1, 0.4
LEARNED = 0.3  # the fraction of the variance that the network learned


class Learned(GaussianDenoiser):
    learns_variance = True

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        return replace(super().__call__(x_t, t, cond), variance_fraction=torch.full_like(x_t, LEARNED))


def images(count: int = 4) -> Tensor:
    z = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = ((MEAN + 1.5 * STD * z).clamp(-1, 1) * 127.5).round() / 127.5
    x[0, 0, 0, :2] = torch.tensor([-1.0, 1.0])  # the bins that reach to infinity
    return x.clamp(-1, 1)


def published_bound(process: VPDiscrete, kept: list[int], x: Tensor, noise: Tensor, variance: str) -> np.ndarray:
    """(B, N) terms in bits/dim, noisiest first, from the tables of the respaced chain."""
    abar_all = np.cumprod(1 - process._betas.numpy())
    abar = abar_all[kept]
    prev = np.append(1.0, abar[:-1])
    betas = 1 - abar / prev
    posterior = betas * (1 - prev) / (1 - abar)
    clipped = np.log(np.append(posterior[1], posterior[1:]))
    log_variances: dict[str, Any] = {
        "fixed-small": clipped,
        "fixed-large": np.log(np.append(posterior[1], betas[1:])),
        "learned-range": LEARNED * np.log(betas) + (1 - LEARNED) * clipped,
        "learned": np.full(len(kept), 2 * LEARNED - 1),
    }
    log_variance = log_variances[variance]
    x0, terms = x.numpy(), []
    cdf = lambda z: 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))  # noqa: E731
    for place, i in enumerate(reversed(range(len(kept)))):
        a, s2 = np.sqrt(abar[i]), 1 - abar[i]
        x_t = a * x0 + np.sqrt(s2) * noise[place].numpy()
        predicted = MEAN + a * STD**2 / (a**2 * STD**2 + s2) * (x_t - a * MEAN)
        on_x0, on_x_t = betas[i] * np.sqrt(prev[i]) / s2, (1 - prev[i]) * np.sqrt(1 - betas[i]) / s2
        mean, right = on_x0 * predicted + on_x_t * x_t, on_x0 * x0 + on_x_t * x_t
        if i:
            gap = log_variance[i] - clipped[i]
            term = 0.5 * (-1 + gap + np.exp(-gap) + (right - mean) ** 2 * np.exp(-log_variance[i]))
        else:
            std = np.exp(log_variance[0] / 2)
            above, below = cdf((x0 - mean + 1 / 255) / std), cdf((x0 - mean - 1 / 255) / std)
            mass = np.where(x0 < -0.999, above, np.where(x0 > 0.999, 1 - below, above - below))
            term = -np.log(np.maximum(mass, 1e-12))
        terms.append(term.reshape(len(x0), -1).mean(1) / math.log(2))
    return np.stack(terms, 1)


@pytest.mark.parametrize("variance", ["fixed-small", "fixed-large", "learned-range", "learned"])
@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 25),
        ({}, 2),
        ({"num_steps": 800}, 40),
        ({"schedule": "cosine"}, 10),
        ({"num_steps": 7, "beta_end": 0.5}, 7),
    ],
)
def test_every_term_is_the_published_one(variance: Any, options: dict[str, Any], steps: int) -> None:
    process = VPDiscrete(**options)
    kept = Respaced().timesteps(process.num_steps, steps)
    x = images()
    noise = torch.randn(steps, *x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = variational_bound(
        Learned(process, MEAN, STD, SHAPE),
        x,
        steps,
        grid=Respaced(),
        variance=variance,
        noise_source=RecordedNoise(step=list(noise)),
    )
    np.testing.assert_allclose(found.terms.numpy(), published_bound(process, kept, x, noise, variance), 1e-9, 1e-9)


def test_the_decoder_of_both_fixed_variances_is_the_same() -> None:
    """Their tables begin alike, and differ elsewhere."""
    model = GaussianDenoiser(VPDiscrete(), MEAN, STD, SHAPE)
    small, large = (variational_bound(model, images(), 25, variance=v) for v in ("fixed-small", "fixed-large"))
    assert torch.equal(small.terms[:, -1], large.terms[:, -1])
    assert float((small.terms[:, :-1] - large.terms[:, :-1]).abs().min()) > 0
