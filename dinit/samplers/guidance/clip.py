"""The posterior mean kept within the range of images. Ho et al. 2020."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.diffusion.denoiser import with_x0
from dinit.samplers.guidance.base import GUIDANCES, Guidance, Guided


@GUIDANCES.register("clip-x0")
@dataclass(frozen=True)
class ClipX0(Guidance):
    """Clamps the posterior mean to [-limit, limit]; eps, score and velocity follow it. Ho et al. 2020.

    For pixels in [-1, 1]; latents have no such range. limit: positive, infinity is neutral.
    """

    limit: float = 1.0

    def __post_init__(self) -> None:
        if not self.limit > 0:
            raise ValueError(f"limit must be positive (infinity clips nothing), got {self.limit}")

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            d = denoiser(x_t, t, cond)
            return with_x0(d, d.x0.clamp(-self.limit, self.limit))

        return Guided(denoiser, guided)
