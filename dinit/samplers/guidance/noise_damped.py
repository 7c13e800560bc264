"""Noise-damped classifier-free guidance. He et al. 2023 (ScaleCrafter)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.samplers.guidance.autoguidance import check_companion
from dinit.samplers.guidance.base import GUIDANCES, Guidance, Guided, batched_call, check_null_class, check_scale


@GUIDANCES.register("noise-damped")
@dataclass(frozen=True)
class NoiseDamped(Guidance):
    """Noise-damped CFG: one network's direction, another's base, for sizes not trained on. He et al. 2023.

    x0 = base's unconditional + scale (conditional - unconditional). The guided network is the one with a widened
    field of view (dilated convolutions), which gets the structure of a large image right and denoises badly; the
    base is the original network, which denoises well. Source: arXiv:2310.07702.

    Args:
        scale: At least 0; 1 without a base is the conditional model (neutral).
        base: The original network's denoiser; None: this is classifier-free guidance.
        max_log_snr: Highest log-SNR at which the base is used; above it this is classifier-free guidance.

    Raises:
        ValueError: An option out of its range; from `wrap`, a denoiser without a null class, or a base that does
            not fit.
    """

    scale: float = 1.5
    base: Denoiser | None = None
    max_log_snr: float = math.inf

    renamed_options: ClassVar[Mapping[str, str]] = {"until": "max_log_snr"}

    def __post_init__(self) -> None:
        check_scale(self.scale, "guidance")
        if self.base is not None and not isinstance(self.base, Denoiser):
            raise ValueError(f"base must be a Denoiser, such as pipeline.denoiser(); got {self.base!r}")

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.scale == 1 and self.base is None:
            return denoiser
        check_null_class(denoiser, "noise-damped guidance", "no guidance, or scale = 1 without a base")
        if self.base is not None:
            check_companion(denoiser, self.base, "noise-damped guidance")

        def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            given, free = batched_call(denoiser, x_t, t, [cond, cond.null()])
            start = self._base(x_t, t, cond, free)
            return replace(given, x0=start + self.scale * (given.x0 - free.x0))

        return Guided(denoiser, guided)

    def _base(self, x_t: Tensor, t: Scales, cond: Condition, free: Denoised) -> Tensor:
        """The unconditional posterior mean that guidance starts from, (B, C, H, W)."""
        if self.base is None or (t.time.ndim == 0 and t.floats.log_snr > self.max_log_snr):
            return free.x0
        null = torch.full((cond.batch,), self.base.num_classes, dtype=torch.int64, device=cond.is_null.device)
        x0 = self.base(x_t, t, self.base.encode(null).in_run(cond.run)).x0
        return x0 if t.time.ndim == 0 else torch.where(free.scales.log_snr <= self.max_log_snr, x0, free.x0)
