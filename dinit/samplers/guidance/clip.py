"""Clipping of the posterior mean to the range of images. Ho et al. 2020."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.samplers.guidance.base import GUIDANCES, Guidance, Guided


@GUIDANCES.register("clip-x0")
@dataclass(frozen=True)
class ClipX0(Guidance):
    """Clamps the posterior mean to [-limit, limit]; eps, score and velocity follow it. Ho et al. 2020.

    For pixels in [-1, 1]; latents have no such range.

    Args:
        limit: Positive; inf is neutral.
        low: Lower end in place of -limit; pixels in [0, 1] have low = 0, high = 1.
        high: Upper end in place of limit, above low.

    Raises:
        ValueError: limit is not positive, or the range is empty.
    """

    unlimited_options: ClassVar = ("limit", "low", "high")

    limit: float = 1.0
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"limit must be positive (infinity clips nothing), got {self.limit}")
        low, high = self.range
        if not low < high:
            raise ValueError(f"the range to clip to needs low < high, got low = {low}, high = {high}")

    @property
    def range(self) -> tuple[float, float]:
        """The ends, (low, high)."""
        return -self.limit if self.low is None else self.low, self.limit if self.high is None else self.high

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        low, high = self.range
        if (low, high) == (-math.inf, math.inf):
            return denoiser

        def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            d = denoiser(x_t, t, cond)
            return replace(d, x0=d.x0.clamp(low, high))

        return Guided(denoiser, guided)
