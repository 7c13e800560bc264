"""Denoising diffusion null-space models. Wang et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.inverse.guidance.base import PosteriorGuidance
from dinit.inverse.measurement import Measurement
from dinit.inverse.operators.svd import SMALLEST_INVERTED, SVD
from dinit.samplers.guidance.base import GUIDANCES


@GUIDANCES.register("ddnm")
@dataclass(frozen=True)
class DDNM(PosteriorGuidance):
    """x0 + A+ (y - A x0): what y determines is y's, the null space is the network's. Wang et al. 2023.

    y counts as free of noise. It costs no derivative of the network. Source: arXiv:2212.00490, Section 3.1. The
    inverse of a blur would multiply what noise y has, rounding to 8 bits too, by thousands; so A+ leaves out the
    smallest singular values, as DDRM's published code does.

    Args:
        measurement: What the images are known by; None is neutral.
        rtol: Singular values up to this share of the largest count as 0, in [0, 1); 0 for all that y determines.

    Raises:
        ValueError: rtol out of its range; from `wrap`, an operator that is not linear.
    """

    rtol: float = SMALLEST_INVERTED

    def __post_init__(self) -> None:
        if not 0 <= self.rtol < 1:
            raise ValueError(f"rtol is a share of the largest singular value, in [0, 1), got {self.rtol}")

    def posterior(
        self, denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition, measurement: Measurement
    ) -> Denoised:
        shape = tuple(x_t.shape[1:])
        svd = measurement.linear(type(self).__name__).svd(shape)
        denoised = denoiser(x_t, t, cond)
        known = svd.of_measurement(measurement.residual(denoised.x0))
        known = self._corrected(known, svd, t.like(x_t), measurement.noise_std)
        return replace(denoised, x0=denoised.x0 + svd.to_image(svd.pseudo_inverse(known, self.rtol), shape))

    def _corrected(self, known: Tensor, svd: SVD, k: Scales, noise_std: float) -> Tensor:
        """The coefficients (B, r) of the residual, as far as they are corrected."""
        return known


@GUIDANCES.register("ddnm+", aliases=["ddnm-plus"])
@dataclass(frozen=True)
class DDNMPlus(DDNM):
    """DDNM for a noisy y: each singular direction is corrected by a share lambda. Wang et al. 2023.

    A direction of singular value s brings noise of standard deviation lambda sigma_y / s into x0. The paper's
    ancestral step keeps it below the noise that the step may add, and adds the rest. A guidance does not know the
    step; here the noise, alpha lambda sigma_y / s in the state, stays below that of x_t, sigma: lambda =
    min(1, sigma s / (alpha sigma_y)). So the correction ends where the state is cleaner than y, and stochastic
    samplers add their noise unchanged. With sigma_y = 0 it is `ddnm`. Source: arXiv:2212.00490, Section 3.3.

    Args:
        measurement: What the images are known by; None is neutral.
        rtol: As in `ddnm`.

    Raises:
        ValueError: rtol out of its range; from `wrap`, an operator that is not linear.
    """

    def _corrected(self, known: Tensor, svd: SVD, k: Scales, noise_std: float) -> Tensor:
        if noise_std == 0:
            return known
        sigma, alpha = (v.reshape(-1, 1) if v.ndim else v for v in (k.sigma, k.alpha))
        share = sigma * svd.values_on(known) / torch.where(alpha > 0, alpha * noise_std, 1e-9)
        return known * share.clamp(max=1).to(known)
