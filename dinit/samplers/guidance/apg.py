"""Adaptive projected guidance (APG). Sadat et al. 2024 (Eliminating oversaturation at high guidance scales)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser
from dinit.samplers.guidance.base import (
    GUIDANCES,
    Guidance,
    check_interval,
    check_null_class,
    check_scale,
    non_batch_dims,
    two_condition_guidance,
)


def projected(difference: Tensor, given: Tensor, eta: float, radius: float) -> Tensor:
    """The difference, at most `radius` long, with its part along `given` weakened to eta of it.

    Args:
        difference: (B, C, H, W). Lengths and directions are those of each sample.
        given: The direction, (B, C, H, W).
        eta: Fraction of the part along `given` that stays; 1 is all.
        radius: Largest length, positive; inf sets none.

    Returns:
        (B, C, H, W).
    """
    if radius < math.inf:
        difference = difference * (radius / _length(difference)).clamp(max=1)
    if eta == 1:
        return difference
    direction = given / _length(given)
    along = (difference * direction).sum(non_batch_dims(given), keepdim=True) * direction
    return difference - (1 - eta) * along


def _length(x: Tensor) -> Tensor:
    square = (x * x).sum(non_batch_dims(x), keepdim=True)
    return square.sqrt().clamp_min(torch.finfo(x.dtype).tiny)


@dataclass
class Momentum:
    """Running difference of a run.

    Attributes:
        difference: (B, C, H, W); None before the first evaluation.
    """

    difference: Tensor | None = None

    def add(self, difference: Tensor, momentum: float) -> Tensor:
        """difference + momentum times the previous result, (B, C, H, W); the result is kept for the next call."""
        if self.difference is not None:
            difference = difference + momentum * self.difference
        self.difference = difference
        return difference


@GUIDANCES.register("apg")
@dataclass(frozen=True)
class APG(Guidance):
    """Adaptive projected guidance: CFG without the part that oversaturates. Sadat et al. 2024.

    x0 = conditional + (scale - 1) update, where update is conditional - unconditional with momentum, limited in
    length and with its part along the conditional posterior mean weakened. With eta = 1, radius = inf and momentum
    = 0 this is CFG. Source: arXiv:2410.02416.

    Args:
        scale: At least 0; 1 is neutral.
        eta: Fraction that is kept of the difference along the conditional posterior mean; 0 is the paper's, 1
            keeps all.
        radius: Largest length of a sample's difference, the paper's r; it depends on the size of the image.
            Positive, inf sets none.
        momentum: Factor in (-1, 1) on the running difference of the evaluations before, the paper's beta; negative
            weakens what repeats itself. It is kept within the run, so a sampler that tries a step more than once
            counts every try.
        low: Lowest log-SNR that is guided; below it the prediction is the conditional one.
        high: Highest log-SNR that is guided, above low; above it the prediction is the conditional one.

    Raises:
        ValueError: An option out of its range; from `wrap`, a denoiser without a null class.
    """

    scale: float = 4.0
    eta: float = 0.0
    radius: float = math.inf
    momentum: float = 0.0
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        check_scale(self.scale, "guidance")
        check_interval(self.low, self.high)
        if not self.radius > 0:
            raise ValueError(f"radius must be positive (infinity limits nothing), got {self.radius}")
        if not -1 < self.momentum < 1:
            raise ValueError(f"momentum must be in (-1, 1), 0 is none; got {self.momentum}")
        if not math.isfinite(self.eta):
            raise ValueError(f"eta must be a number (0 leaves nothing along the image, 1 all), got {self.eta}")

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.scale == 1:
            return denoiser
        check_null_class(denoiser, "adaptive projected guidance", "no guidance, or scale = 1")
        owner = object()  # two APGs, one inside the other, have a momentum each

        def combine(given: Denoised, free: Denoised, cond: Condition) -> Denoised:
            difference = given.x0 - free.x0
            if self.momentum:
                difference = cond.run.states.get((owner, cond.batch), Momentum).add(difference, self.momentum)
            update = projected(difference, given.x0, self.eta, self.radius)
            return replace(given, x0=given.x0 + (self.scale - 1) * update)

        return two_condition_guidance(denoiser, lambda cond: cond.null(), combine, self.low, self.high)
