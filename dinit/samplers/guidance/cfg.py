"""Classifier-free guidance. Ho & Salimans 2022."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

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
from dinit.samplers.guidance.schedule import ScaleSchedule, make_schedule


def extrapolate(given: Tensor, free: Tensor, scale: float | Tensor, channels: int | None = None) -> Tensor:
    """free + scale (given - free) on the first `channels` channels (None: all), `given` on the rest."""
    guided = free + scale * (given - free)
    return guided if channels is None else torch.cat([guided[:, :channels], given[:, channels:]], dim=1)


def extrapolate_prediction(
    given: Denoised, free: Denoised, scale: float | Tensor, channels: int | None = None
) -> Denoised:
    """`given` with its posterior mean, and at sigma = 0 its eps, extrapolated from those of `free`."""
    x0 = extrapolate(given.x0, free.x0, scale, channels)
    if given.clean_eps is None or free.clean_eps is None:
        return replace(given, x0=x0)
    return replace(given, x0=x0, clean_eps=extrapolate(given.clean_eps, free.clean_eps, scale, channels))


def restore_spread(guided: Tensor, given: Tensor, rescale: float) -> Tensor:
    """Guided prediction with each sample's standard deviation brought back to that of `given`.

    Lin et al. 2023 (Common diffusion noise schedules), Section 3.4, arXiv:2305.08891.

    Args:
        guided: (B, C, H, W).
        given: The conditional prediction, (B, C, H, W).
        rescale: Fraction of the way, in [0, 1].

    Returns:
        (B, C, H, W).
    """
    axes = non_batch_dims(guided)
    ratio = given.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
    return guided * (rescale * ratio + (1 - rescale))


@GUIDANCES.register("cfg")
@dataclass(frozen=True)
class CFG(Guidance):
    """Classifier-free guidance on the posterior mean, one batched forward. Ho & Salimans 2022.

    x0 = unconditional + scale (conditional - unconditional). Guiding the posterior mean is guiding eps, v or the
    velocity: at one x_t they are affine in one another. Source: arXiv:2207.12598.

    Args:
        scale: At least 0. 1 is the conditional model (neutral), 0 the unconditional one, above 1 guides; the
            paper's w is scale - 1. The default is that of DiT's published figures.
        low: Lowest log-SNR that is guided; below it the prediction is the conditional one (Kynkäänniemi et al.
            2024, arXiv:2404.07724).
        high: Highest log-SNR that is guided, above low; above it the prediction is the conditional one.
        rescale: In [0, 1], how far to undo the growth of the posterior mean's standard deviation (Lin et al. 2023,
            their phi).
        channels: The number of leading channels that are guided, at least 1; the others stay conditional.
            Published figures of the DiT family have 3; None is all.
        schedule: How much of the guidance applies at each time, 1 + (scale - 1) weight: 'constant', 'linear',
            'cosine', 'log-snr', 'power-cosine', one of them with options as a mapping, or a ScaleSchedule.

    Raises:
        ValueError: An option out of its range; from `wrap`, a denoiser without a null class.
    """

    scale: float = 1.5
    low: float = -math.inf
    high: float = math.inf
    rescale: float = 0.0
    channels: int | None = None
    schedule: ScaleSchedule | str | Mapping[str, Any] = "constant"

    def __post_init__(self) -> None:
        check_scale(self.scale, "guidance")
        check_interval(self.low, self.high)
        if not 0 <= self.rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {self.rescale}")
        if self.channels is not None and self.channels < 1:
            raise ValueError(f"channels must be at least 1, or None for all, got {self.channels}")
        schedule = make_schedule(self.schedule)
        if isinstance(self.schedule, Mapping):  # a record of the object, which is equal to the object
            object.__setattr__(self, "schedule", schedule)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.scale == 1:
            return denoiser
        check_null_class(denoiser, "classifier-free guidance", "no guidance, or scale = 1")
        schedule = make_schedule(self.schedule)

        def combine(given: Denoised, free: Denoised, cond: Condition) -> Denoised:
            scale = schedule.scale_at(self.scale, given.scales)
            guided = extrapolate_prediction(given, free, scale, self.channels)
            if not self.rescale:
                return guided
            return replace(guided, x0=restore_spread(guided.x0, given.x0, self.rescale))

        return two_condition_guidance(denoiser, lambda cond: cond.null(), combine, self.low, self.high)
