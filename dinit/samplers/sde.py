"""Euler–Maruyama on the reverse-time SDE. Song et al. 2021, Eq. 6."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dinit.diffusion import Denoised, Scales
from dinit.diffusion.process import diffusion_squared
from dinit.samplers.base import SAMPLERS, Denoise, Sampler, StepNoise
from dinit.samplers.ddpm import ancestral_transition


def euler_maruyama_transition(d: Denoised, t: Scales, s: Scales) -> tuple[Tensor, Tensor]:
    """Mean (B, C, H, W) and standard deviation of x_s given x_t, by one Euler–Maruyama step in t.

    At alpha = 0 drift and diffusion are infinite: x_t holds nothing of x0 and is forgotten at once. There the
    ancestral transition is taken, which draws x_s from its distribution given x0 alone.
    """
    if t.numbers.alpha == 0:
        return ancestral_transition(d, t, s, "fixed-small")
    g2 = diffusion_squared(t)
    drift = t.d_alpha / t.alpha * d.x_t - g2 * d.score
    return d.x_t + (s.t - t.t) * drift, (g2 * (t.t - s.t)).sqrt()


@SAMPLERS.register("euler-maruyama")
@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    """Euler–Maruyama on the reverse-time SDE dx = (f x - g² score) dt + g dw. Song et al. 2021, Eq. 6.

    Its step is stable where f Δt is small: on VE, whose sigma spans decades, that takes hundreds of steps.
    """

    draws_per_step = 1

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        mean, std = euler_maruyama_transition(denoise(x_t, t), t, s)
        return mean + std * noise(0, x_t), None
