"""Second-order Tweedie sampling from a surrogate loss. Rout et al. 2024 (STSL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dinit.devices import upload
from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.inverse.guidance.base import PosteriorGuidance, linearise
from dinit.inverse.guidance.dps import distance_gradient, step_to_x0
from dinit.inverse.measurement import Measurement
from dinit.samplers.guidance.base import GUIDANCES, non_batch_dims

_PROBE = 0.1  # of sigma: how far the second evaluation lies from x_t


@GUIDANCES.register("stsl")
@dataclass(frozen=True)
class STSL(PosteriorGuidance):
    """DPS with the covariance of x0 in the distance: |y - A(x0)|^2 + eta tr Cov[x0 | x_t]. Rout et al. 2024.

    The expected squared distance of the data from y is at most that with eta = |A|^2, to second order by Tweedie's
    formula, whose covariance is sigma^2 / alpha times the denoiser's Jacobian. Its trace is estimated as in the
    paper, by the difference of two evaluations, one at x_t and one at x_t plus a random vector of signs, drawn for
    each image and step: twice the cost of `dps`, whose steps down the root of the sum are taken. On Gaussian data,
    whose covariance does not depend on x_t, the trace makes the steps shorter where |y - A(x0)| is small.
    Source: arXiv:2312.00852. Its own step sizes are tuned for latent Stable Diffusion, and are not these.

    Args:
        measurement: What the images are known by; None is neutral.
        zeta: At least 0, as that of `dps`.
        eta: Weight of the trace, at least 0; 0 is `dps`. On the open problem's posteriors less is nearer.
        steps: N as that of `dps`.

    Raises:
        ValueError: zeta or eta that is negative; steps below 1.
    """

    zeta: float = 1.0
    eta: float = 0.02
    steps: int | None = None

    linear_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.zeta < 0 or self.eta < 0:
            raise ValueError(f"zeta and eta must be at least 0, got {self.zeta} and {self.eta}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, or None for those of the run, got {self.steps}")

    def posterior(
        self, denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition, measurement: Measurement
    ) -> Denoised:
        here = linearise(denoiser, x_t, t, cond)
        k, x0 = here.scales, here.denoised.x0
        signs = _signs(x_t, cond)
        near = linearise(denoiser, x_t + _PROBE * t.like(x_t).sigma * signs, t, cond)
        # tr C = sigma^2 / alpha tr J, tr J by v^T (x0(x_t + h v) - x0(x_t)) / h with a vector v of signs.
        weight = self.eta * k.sigma / (k.alpha * _PROBE)
        trace = weight * (signs * (near.denoised.x0 - x0)).sum(non_batch_dims(x0), keepdim=True)
        trace = trace.clamp(min=0)  # an estimate of what is not negative
        slope, length = distance_gradient(measurement, x0, trace)
        change = here.vjp(slope)
        growth = weight * (near.vjp(signs) - here.vjp(signs))
        safe = torch.where(length > 0, length, torch.ones_like(length))
        change = change + torch.where(length > 0, growth / (2 * safe), torch.zeros_like(growth))
        steps = self.steps or cond.run.steps or denoiser.process.num_steps
        return here.shifted(-self.zeta * steps * step_to_x0(k) * change)


def _signs(x_t: Tensor, cond: Condition) -> Tensor:
    """Random signs, (B, C, H, W), of each image and step; outside a run the same for every image."""
    run = cond.run
    if run.noise_source is None:
        fixed = torch.randn(1, *x_t.shape[1:], generator=torch.Generator().manual_seed(0))
        return upload(fixed, x_t.device, x_t.dtype).sign().expand_as(x_t)
    drawn = run.noise_source.normal("stsl", run.step, like=x_t[: len(x_t) // run.copies])
    return drawn.sign().repeat(run.copies, *(1,) * (x_t.ndim - 1))
