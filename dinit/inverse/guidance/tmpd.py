"""Tweedie moment-projected diffusions. Boys et al. 2024."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.inverse.guidance.base import PosteriorGuidance, linearise
from dinit.inverse.measurement import Measurement
from dinit.samplers.guidance.base import GUIDANCES


@GUIDANCES.register("tmpd")
@dataclass(frozen=True)
class TMPD(PosteriorGuidance):
    """The score of y under a Gaussian whose covariance A C A* + sigma_y^2 I is replaced by its row sums.

    C is sigma^2 / alpha times the denoiser's Jacobian; the row sums take one vector-Jacobian product, and the score
    another. Exact on data N(m, v I) where A A* is diagonal. A number of y whose row sum is not positive, as no
    variance is, has no part in the score. One whose row sum is far below its variance, where covariances are
    negative, has too large a part: the published rule then diverges. Boys et al. 2024. Source: arXiv:2310.06721.

    Args:
        measurement: What the images are known by; None is neutral.
        line_search: Where the score overshoots y, so that |y - A x0| of an image would grow, x0 moves to where it
            is least. Published: without.

    Raises:
        ValueError: From `wrap`, an operator that is not linear.
    """

    line_search: bool = True

    def posterior(
        self, denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition, measurement: Measurement
    ) -> Denoised:
        operator, shape = measurement.linear("tmpd"), tuple(x_t.shape[1:])
        prior = linearise(denoiser, x_t, t, cond)
        residual = measurement.residual(prior.denoised.x0)
        ones = operator.adjoint(torch.ones_like(residual), shape)
        sums = operator.apply(prior.covariance(ones))
        total = torch.where(sums > 0, sums, torch.ones_like(sums)) + measurement.noise_std**2
        scaled = torch.where(sums > 0, residual / total, torch.zeros_like(residual))
        change = prior.covariance(operator.adjoint(scaled, shape))
        if self.line_search:
            return prior.towards(change, residual, operator.apply(change))
        return prior.shifted(change)
