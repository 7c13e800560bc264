"""Explicit one-step solvers of the probability-flow ODE dx/dt = velocity(x, t). Song et al. 2021, Eq. 13."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dinit.diffusion import Denoiser, Scales
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise


@SAMPLERS.register("euler")
@dataclass(frozen=True)
class Euler(Sampler):
    """Explicit Euler on the probability-flow ODE, in t. On the linear path this is flow-matching Euler."""

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        return x_t + (s.time - t.time) * denoise(x_t, t).velocity, None


@SAMPLERS.register("heun")
@dataclass(frozen=True)
class Heun(Sampler):
    """Explicit trapezoid on the probability-flow ODE, 2 NFE a step. Karras et al. 2022, Algorithm 1, in t."""

    def claims(self) -> Claims:
        return Claims(order=2, nfe_per_step=2)

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        if not bool(points[-1].d_sigma.isfinite()):
            raise ValueError(
                f"Heun asks for the velocity at the last time, t = {float(points[-1].time):g}, where it is "
                "infinite on "
                f"{denoiser.process}: end with 'posterior-mean', or at a later time"
            )

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        slope = denoise(x_t, t).velocity
        euler = x_t + (s.time - t.time) * slope
        return x_t + (s.time - t.time) * (slope + denoise(euler, s).velocity) / 2, None
