"""Classifier-free guidance. Ho & Salimans 2022."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.diffusion.denoiser import with_x0
from dinit.samplers.guidance.base import GUIDANCES, Guidance, Guided


def extrapolate(given: Tensor, free: Tensor, scale: float | Tensor, channels: int | None = None) -> Tensor:
    """free + scale (given - free) on the first `channels` channels (None: all), `given` on the rest."""
    guided = free + scale * (given - free)
    return guided if channels is None else torch.cat([guided[:, :channels], given[:, channels:]], dim=1)


def restore_spread(guided: Tensor, given: Tensor, rescale: float) -> Tensor:
    """Brings each sample's standard deviation back to that of `given`, by the fraction `rescale`.

    Lin et al. 2023 (Common diffusion noise schedules), Section 3.4. (B, C, H, W) in and out.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = given.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (rescale * ratio + (1 - rescale))


@GUIDANCES.register("cfg")
@dataclass(frozen=True)
class CFG(Guidance):
    """Classifier-free guidance on the posterior mean, one batched forward. Ho & Salimans 2022.

    scale: 1 is the conditional model (neutral), 0 the unconditional one, above 1 guides; their w is scale - 1.
    The default is that of DiT's published figures.
    Guiding the posterior mean is guiding eps, v or the velocity: at one x_t they are affine in one another.
    low, high: guide where low <= log-SNR <= high only, and ask for the conditional model alone elsewhere
    (Kynkäänniemi et al. 2024). rescale: in [0, 1], how far to undo the growth of the posterior mean's standard
    deviation (Lin et al. 2023, their phi). channels: guide the first so many channels and leave the others
    conditional; published figures of the DiT family have 3, None is all.
    ValueError for a negative scale, an empty interval, or a denoiser without a null class.
    """

    scale: float = 1.5
    low: float = -math.inf
    high: float = math.inf
    rescale: float = 0.0
    channels: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.scale < math.inf:
            raise ValueError(
                f"guidance scale must be >= 0 (1 is the conditional model, 0 the unconditional), got {self.scale}"
            )
        if not self.low < self.high:
            raise ValueError(f"the log-SNR interval needs low < high, got low = {self.low}, high = {self.high}")
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale}")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels must be at least 1, or None for all, got {self.channels}")

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.scale == 1:
            return denoiser
        if denoiser.num_classes == 0:
            raise ValueError(
                "classifier-free guidance needs a model with classes; this one is unconditional: use no guidance, "
                "or scale = 1"
            )
        if not denoiser.null_class:
            raise ValueError(
                "classifier-free guidance needs a model trained with a null class; this one has none: use no "
                "guidance, scale = 1, or a classifier"
            )

        def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            if t.t.ndim == 0 and not self.low <= t.numbers.log_snr <= self.high:
                return denoiser(x_t, t, cond)
            twice = t if t.t.ndim == 0 else t.map(lambda v: torch.cat([v, v]))
            given, free = denoiser(torch.cat([x_t, x_t]), twice, cond.joined(cond.null())).halves()
            x0 = extrapolate(given.x0, free.x0, self.scale, self.channels)
            if self.rescale:
                x0 = restore_spread(x0, given.x0, self.rescale)
            if t.t.ndim:
                inside = (t.log_snr >= self.low) & (t.log_snr <= self.high)
                x0 = torch.where(inside.to(x0.device).reshape(given.scales.t.shape), x0, given.x0)
            return with_x0(given, x0)

        return Guided(denoiser, guided)
