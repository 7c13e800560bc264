"""Plug-and-play restoration by denoising diffusion. Zhu et al. 2023 (DiffPIR)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.inverse.guidance.base import PosteriorGuidance
from dinit.inverse.guidance.solving import noise_to_signal, regularised
from dinit.inverse.measurement import Measurement
from dinit.inverse.operators.svd import SMALLEST_INVERTED
from dinit.samplers.guidance.base import GUIDANCES


@GUIDANCES.register("diffpir")
@dataclass(frozen=True)
class DiffPIR(PosteriorGuidance):
    """Proximal step of the data term from x0: argmin_x |y - A x|^2 + rho |x - x0|^2. Zhu et al. 2023.

    rho = lam sigma_y^2 alpha^2 / sigma^2. With lam = 1 that is Bayes' rule for a prior N(x0, (sigma /
    alpha)^2 I), the likelihood of x_t alone. It costs no derivative of the network. Where sigma_y is 0 it is the
    projection on A x = y, as `ddnm`. The paper's stochasticity zeta is that of the sampler here: `ddim` with eta.
    Source: arXiv:2305.08995, Section 3. While there is much noise rho is small, and a blur's inverse would multiply
    the noise of y by thousands: singular values up to `rtol` of the largest are left out.

    Args:
        measurement: What the images are known by; None is neutral.
        lam: lambda, above 0: the weight of the network's x0. The paper chooses it for each task, 1 to 25.
        rtol: In [0, 1); 0 for all that y determines. As in `ddnm`.

    Raises:
        ValueError: lam that is not positive; rtol out of its range; from `wrap`, an operator that is not linear.
    """

    lam: float = 1.0
    rtol: float = SMALLEST_INVERTED

    def __post_init__(self) -> None:
        if self.lam <= 0:
            raise ValueError(f"lam must be positive, got {self.lam}")
        if not 0 <= self.rtol < 1:
            raise ValueError(f"rtol is a share of the largest singular value, in [0, 1), got {self.rtol}")

    def posterior(
        self, denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition, measurement: Measurement
    ) -> Denoised:
        shape, k = tuple(x_t.shape[1:]), t.like(x_t)
        operator = measurement.linear("diffpir")
        operator.svd(shape)  # refused before the network is evaluated
        denoised = denoiser(x_t, t, cond)
        variance = k.sigma**2 / torch.where(k.alpha > 0, k.alpha**2, 1e-18)
        rho = self.lam * noise_to_signal(measurement.noise_std, variance)
        residual = measurement.residual(denoised.x0)
        return replace(denoised, x0=denoised.x0 + regularised(operator, residual, rho, shape, self.rtol))
