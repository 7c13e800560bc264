"""Diffusion posterior sampling. Chung et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.diffusion.process import diffusion_squared
from dinit.inverse.guidance.base import PosteriorGuidance, linearise
from dinit.inverse.measurement import Measurement
from dinit.samplers.guidance.base import GUIDANCES, non_batch_dims


@GUIDANCES.register("dps")
@dataclass(frozen=True)
class DPS(PosteriorGuidance):
    """Steps of a fixed length down the distance |y - A(x0)|, for any differentiable operator. Chung et al. 2023.

    After each ancestral step the state moves by -zeta d|y - A(x0)| / dx_t (arXiv:2209.14687, Algorithm 1). Over a
    run of N steps, each 1/N in time, that is a drift. The reverse SDE has the drift g^2 times the score, so the
    score changes by -zeta N / g^2 times the gradient, and x0 by sigma^2 / alpha times that. This is one guidance
    for every solver; under ancestral steps it is the published one to first order in the step. A solver of the
    probability-flow ODE moves half as far, as it does for every score.

    The distance is that of each image, so that none depends on its batch. zeta is a length and noise_std has no
    part in it: a heuristic, whose samples are not those of the posterior.

    Args:
        measurement: What the images are known by; None is neutral.
        zeta: At least 0, the step size of the authors' code, by which the gradient of the distance, not of its
            square, is multiplied; 1 is published for inpainting and super-resolution.
        steps: N, at least 1; None for the steps of the run (1000 outside a run).

    Raises:
        ValueError: zeta that is negative; steps below 1.
    """

    zeta: float = 1.0
    steps: int | None = None

    linear_only: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.zeta < 0:
            raise ValueError(f"zeta is a step size, at least 0, got {self.zeta}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, or None for those of the run, got {self.steps}")

    def posterior(
        self, denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition, measurement: Measurement
    ) -> Denoised:
        prior = linearise(denoiser, x_t, t, cond)
        steps = self.steps or cond.run.steps or denoiser.process.num_steps
        change = prior.vjp(distance_gradient(measurement, prior.denoised.x0)[0])
        return prior.shifted(-self.zeta * steps * step_to_x0(prior.scales) * change)


def distance_gradient(measurement: Measurement, x0: Tensor, spread: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """sqrt(|y - A(x0)|^2 + spread) of each image: its gradient by x0, 0 where it is 0, and its value.

    Args:
        measurement: With a row for each image.
        x0: (B, C, H, W).
        spread: At least 0, a number or (B, 1, ...), a constant.

    Returns:
        (B, C, H, W), and (B, 1, ...).
    """
    attached = torch.is_grad_enabled() and x0.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        point = x0 if attached else x0.detach().clone().requires_grad_()
        residual = measurement.residual(point)
        square = residual.square().sum(non_batch_dims(residual)).reshape(-1, *(1,) * (x0.ndim - 1))
        slope = torch.autograd.grad(square.sum(), point, create_graph=attached)[0]
    total = (square if attached else square.detach()) + spread
    length = torch.where(total > 0, total, torch.ones_like(total)).sqrt()
    zero = torch.zeros_like(length)
    return torch.where(total > 0, slope / (2 * length), zero), torch.where(total > 0, length, zero)


def step_to_x0(k: Scales) -> Tensor:
    """sigma^2 / (alpha g^2): from a drift of the state, in units of time, to a change of x0; 0 where sigma is 0.

    Args:
        k: Of one time or of several, broadcastable to x_t.
    """
    return torch.where(k.sigma == 0, torch.zeros_like(k.sigma), k.sigma**2 / (k.alpha * diffusion_squared(k)))
