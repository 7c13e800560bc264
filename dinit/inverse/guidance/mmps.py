"""Moment-matching posterior sampling. Rozet et al. 2024 (Learning diffusion priors from observations by EM)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.inverse.guidance.base import PosteriorGuidance, predict_with_vjp
from dinit.inverse.measurement import Measurement
from dinit.samplers.guidance.base import GUIDANCES, non_batch_dims


@GUIDANCES.register("mmps")
@dataclass(frozen=True)
class MMPS(PosteriorGuidance):
    """Posterior mean of a Gaussian with the exact mean and covariance of x0 given x_t. Rozet et al. 2024.

    Source: arXiv:2405.13712, Section 4.2. The covariance is sigma^2 / alpha times the denoiser's Jacobian, and the
    system is solved by conjugate gradients on products with it. On Gaussian data a full solve is exact.

    Args:
        measurement: What the images are known by; None is neutral.
        iterations: Of the conjugate gradients, at least 1, each a vector-Jacobian product.

    Raises:
        ValueError: iterations below 1; from `wrap`, an operator that is not linear.
    """

    iterations: int = 5

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def posterior(
        self, denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition, measurement: Measurement
    ) -> Denoised:
        k, shape = t.like(x_t), tuple(x_t.shape[1:])
        operator = measurement.linear("mmps")
        denoised, vjp = predict_with_vjp(denoiser, x_t, t, cond)
        # sigma^2 / alpha, from the Jacobian to the covariance; x_t of alpha = 0 has no part of x0, and there the
        # prior's mean stays as it is.
        gain = torch.where(k.alpha == 0, torch.zeros_like(k.alpha), k.sigma**2 / k.alpha)

        def system(v: Tensor) -> Tensor:
            back = vjp(operator.adjoint(v, shape))
            return operator.apply(gain * back) + measurement.noise_std**2 * v

        solved = _conjugate_gradients(system, measurement.residual(denoised.x0), self.iterations)
        return replace(denoised, x0=denoised.x0 + gain * vjp(operator.adjoint(solved, shape)))


def _conjugate_gradients(system: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """Solution of a positive semidefinite system for each row, from 0; a row that has converged stays as it is."""
    x = torch.zeros_like(right)
    rest = direction = right
    square = _dot(rest, rest)
    for _ in range(iterations):
        image = system(direction)
        step = _ratio(square, _dot(direction, image))
        x = x + step * direction
        rest = rest - step * image
        before, square = square, _dot(rest, rest)
        direction = rest + _ratio(square, before) * direction
    return x


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(non_batch_dims(one), keepdim=True)


def _ratio(one: Tensor, other: Tensor) -> Tensor:
    """one / other, and 0 where there is nothing left to divide."""
    return torch.where(
        other > 0, one / torch.where(other > 0, other, torch.ones_like(other)), torch.zeros_like(one)
    )
