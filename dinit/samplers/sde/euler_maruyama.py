"""Euler–Maruyama on the reverse-time SDE. Song et al. 2021, Eq. 6."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from dinit.diffusion import Denoised, Denoiser, Scales
from dinit.diffusion.process import diffusion_squared
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.multistep.ode_variables import NOISE_LEVEL
from dinit.samplers.sde.ancestral import check_noise
from dinit.samplers.sde.ddpm import ancestral_transition


def noise_level_transition(d: Denoised, t: Scales, s: Scales, eta: float) -> tuple[Tensor, Tensor | float]:
    """Mean and standard deviation of x_s given x_t, by one Euler–Maruyama step in sigma / alpha.

    Args:
        d: The denoised batch at t.
        t: Start of the step, with alpha > 0.
        s: End of the step.
        eta: Factor on the diffusion coefficient, with (1 + eta²) / 2 of the reverse-time SDE's score.

    Returns:
        The mean (B, C, H, W), and the standard deviation.
    """
    u_t, u_s = NOISE_LEVEL.at(t), NOISE_LEVEL.at(s)
    mean = s.floats.alpha * (d.x_t / t.floats.alpha + (1 + eta**2) * (u_s - u_t) * d.eps)
    return mean, eta * s.floats.alpha * math.sqrt(u_t * u_t - u_s * u_s)


def euler_maruyama_transition(d: Denoised, t: Scales, s: Scales, eta: float = 1.0) -> tuple[Tensor, Tensor | float]:
    """Mean and standard deviation of x_s given x_t, by one Euler–Maruyama step in t.

    At alpha = 0 drift and diffusion are infinite: x_t holds nothing of x0 and is forgotten at once. There the
    ancestral transition is taken, which draws x_s from its distribution given x0 alone.

    Args:
        d: The denoised batch at t.
        t: Start of the step.
        s: End of the step.
        eta: Factor on the diffusion coefficient, with (1 + eta²) / 2 of the reverse-time SDE's score.

    Returns:
        The mean (B, C, H, W), and the standard deviation.
    """
    if t.floats.alpha == 0:
        return ancestral_transition(d, t, s, "fixed-small")
    a, b = t.floats, s.floats
    g2 = diffusion_squared(a)
    drift = a.d_alpha / a.alpha * d.x_t - (1 + eta**2) / 2 * g2 * d.score
    return d.x_t + (b.time - a.time) * drift, eta * math.sqrt(g2 * (a.time - b.time))


@SAMPLERS.register("euler-maruyama", aliases=("em",))
@dataclass(frozen=True)
class EulerMaruyama(Sampler):
    r"""Euler–Maruyama on the reverse-time SDE dx = (f x - g² score) dt + g dw. Song et al. 2021, Eq. 6.

    Formula: $x_s = x_t + (s - t)\left(f x_t - \tfrac{1 + \eta^2}{2}\, g^2\,\nabla \log p_t(x_t)\right) + \eta\,
        g\sqrt{t - s}\, z$

    f = d log(alpha) / dt and g² = d(sigma²)/dt - 2 f sigma² at t. The step is stable where f Δt is small: on VE,
    whose sigma spans decades, that takes hundreds of steps. Source: arXiv:2011.13456.

    Args:
        variable: 't', or 'noise-level', the same in u = sigma / alpha on x / alpha, where the score makes all of
            the drift and the noise has its exact variance u_t² - u_s² (azula's Itô sampler; Karras et al. 2022,
            Eq. 6). The latter needs a finite u at the start.
        eta: Factor on g, at least 0. 0 is Euler's method on the probability flow, 1 the reverse-time SDE.

    Raises:
        ValueError: An option out of its range; from a run, 'noise-level' from alpha = 0.
    """

    variable: Literal["t", "noise-level"] = "t"
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.variable not in ("t", "noise-level"):
            raise ValueError(f"variable must be 't' or 'noise-level', got {self.variable!r}")
        check_noise(self)

    def claims(self) -> Claims:
        return Claims(draws_per_step=int(self.eta > 0))

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        if self.variable == "noise-level" and points[0].floats.alpha == 0 and len(points) > 1:
            raise ValueError(
                f"sigma / alpha is infinite at the run's first time, t = {points[0].floats.time:g}: start a little "
                "later, as grid='log-snr' with initial_state= does, or use variable='t'"
            )

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        d = denoise(x_t, t)
        transition = euler_maruyama_transition if self.variable == "t" else noise_level_transition
        mean, std = transition(d, t, s, self.eta)
        return mean + std * noise(0, x_t) if self.stochastic else mean, None
