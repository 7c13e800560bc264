"""Euler on the straight path of flow matching. Lipman et al. 2023; Liu et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dinit.diffusion import Scales
from dinit.samplers.base import SAMPLERS, Sampler, StepDenoiser, StepNoise


@SAMPLERS.register("flow-euler", aliases=("flow-match-euler",), special_case_of="ddim")
@dataclass(frozen=True)
class FlowEuler(Sampler):
    """Euler along the straight path (1 - u) x0 + u eps, in u: x + (u_s - u_t) (eps - x0). Liu et al. 2023.

    Every path is the straight one after division by alpha + sigma, with u = sigma / (alpha + sigma), so this
    runs on any process and is DDIM in other words. On linear flow u is sigma, whatever the resolution shift;
    there 'euler' differs from it, as that one steps in t.
    """

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        d = denoise(x_t, t)
        scale_t, scale_s = t.alpha + t.sigma, s.alpha + s.sigma
        straight = x_t / scale_t + (s.sigma / scale_s - t.sigma / scale_t) * (d.eps - d.x0)
        return scale_s * straight, None
