"""Dynamic thresholding of the posterior mean. Saharia et al. 2022 (Imagen)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.samplers.guidance.base import GUIDANCES, Guidance, Guided


def percentile_of(values: Tensor, p: float) -> Tensor:
    """The p-quantile of each sample's values, linear between order statistics, (B, 1, 1, 1).

    torch.quantile has a limit of 16 million values for the whole batch.
    """
    ordered = values.flatten(1).sort(dim=1).values
    place = p * (ordered.shape[1] - 1)
    below = math.floor(place)
    above = min(below + 1, ordered.shape[1] - 1)
    found = ordered[:, below].lerp(ordered[:, above], place - below)
    return found.reshape(-1, *(1,) * (values.ndim - 1))


@GUIDANCES.register("dynamic-threshold")
@dataclass(frozen=True)
class DynamicThreshold(Guidance):
    """Dynamic thresholding: clips each posterior mean at a percentile of its own values. Saharia et al. 2022.

    x0 = clamp(x0, -s, s) limit / s, where s is the percentile of |x0|, at least limit and at most largest. For
    pixels in [-limit, limit]; latents have no such range. Source: arXiv:2205.11487.

    Args:
        percentile: In (0, 1].
        limit: Positive; inf is neutral.
        largest: Largest s, at least limit; inf is the paper's.

    Raises:
        ValueError: An option out of its range.
    """

    unlimited_options: ClassVar = ("limit",)

    percentile: float = 0.995
    limit: float = 1.0
    largest: float = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 1:
            raise ValueError(f"percentile must be in (0, 1], got {self.percentile}")
        if not 0 < self.limit <= self.largest:
            raise ValueError(f"need 0 < limit <= largest, got limit = {self.limit}, largest = {self.largest}")

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.limit == math.inf:
            return denoiser

        def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            d = denoiser(x_t, t, cond)
            s = percentile_of(d.x0.abs(), self.percentile).clamp(self.limit, self.largest)
            return replace(d, x0=d.x0.clamp(-s, s) * (self.limit / s))

        return Guided(denoiser, guided)
