"""Classifier-free guidance. Ho & Salimans 2022."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.diffusion.denoiser import with_x0
from dinit.samplers.guidance.base import GUIDANCES, Guidance, Guided


@GUIDANCES.register("cfg")
@dataclass(frozen=True)
class CFG(Guidance):
    """Classifier-free guidance. Ho & Salimans 2022; their w is scale - 1.

    scale: 1 is the conditional model, 0 the unconditional one, above 1 guides; must be >= 0.
    """

    scale: float

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            given, free = denoiser(torch.cat([x_t, x_t]), t, cond.joined(cond.null())).halves()
            return with_x0(given, torch.lerp(free.x0, given.x0, self.scale))

        return Guided(denoiser, guided)
