"""Posterior guidance: the denoiser of p(x0 | y) from that of p(x0) and a measurement y. What its methods share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.inverse.measurement import Measurement
from dinit.samplers.guidance.base import Guidance, Guided
from dinit.samplers.guidance.gradient import differentiable


@dataclass(frozen=True)
class PosteriorGuidance(Guidance):
    """Guidance by a measurement. Without one it is neutral.

    Args:
        measurement: What the images are known by; None for nothing.
    """

    measurement: Measurement | None = None

    linear_only: ClassVar[bool] = True

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.measurement is None:
            return denoiser
        measurement = self.measurement
        if self.linear_only:
            measurement.linear(type(self).__name__)

        def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            return self.posterior(denoiser, x_t, t, cond, measurement.fitted(x_t))

        return Guided(denoiser, guided)

    def rows(self, part: slice) -> Self:
        return self if self.measurement is None else replace(self, measurement=self.measurement.rows(part))

    @abstractmethod
    def posterior(
        self, denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition, measurement: Measurement
    ) -> Denoised:
        """The prediction of E[x0 | x_t, y].

        Args:
            denoiser: Of E[x0 | x_t].
            x_t: (B, C, H, W).
            t: One time, or one a sample.
            cond: The condition of the batch.
            measurement: With a row for each of the batch.
        """


def predict_with_vjp(
    denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition
) -> tuple[Denoised, Callable[[Tensor], Tensor]]:
    """The prediction, and products with its Jacobian J = d E[x0 | x_t] / d x_t from the left: v -> J^T v.

    For an exact denoiser J is symmetric and alpha / sigma^2 times the covariance of x0 given x_t. It works inside
    torch.no_grad and inference_mode. Each product costs a backward pass.

    Args:
        denoiser: No sample of it depends on another.
        x_t: (B, C, H, W).
        t: One time, or one a sample.
        cond: The condition of the batch.

    Returns:
        The prediction, without gradients, and the function from (B, C, H, W) to (B, C, H, W).
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x_t.detach().clone().requires_grad_()
        denoised = denoiser(x, differentiable(t), cond)
        x0 = denoised.x0

    def vjp(v: Tensor) -> Tensor:
        with torch.inference_mode(False):
            return torch.autograd.grad(x0, x, v.clone() if v.is_inference() else v, retain_graph=True)[0]

    return replace(denoised, x_t=x_t, x0=x0.detach()), vjp
