"""Solvers of second order along the straight path of flow matching, in u = sigma / (alpha + sigma).

'flow-euler' (flow.py) is their first-order companion. On linear flow u is sigma and the state is not rescaled:
these are the solvers that flow matching takes in sigma, whatever the resolution shift, where 'heun' and 'midpoint'
step in t (the same without a shift). On other paths the state is divided by alpha + sigma; they run anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dinit.diffusion import Denoiser, Scales
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.multistep.ode_variables import STRAIGHT
from dinit.samplers.ode.runge_kutta import MIDPOINT, TRAPEZOID, inner_times, runge_kutta_step


@SAMPLERS.register("flow-heun", aliases=("flow-match-heun",))
@dataclass(frozen=True)
class FlowHeun(Sampler):
    """Explicit trapezoid along the straight path, 2 NFE a step. Liu et al. 2023."""

    def claims(self) -> Claims:
        return Claims(order=2, nfe_per_step=2)

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        return inner_times(TRAPEZOID, STRAIGHT, denoiser, t, s)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        return runge_kutta_step(TRAPEZOID, STRAIGHT, denoise, x_t, t, s, denoise.inner), None


@SAMPLERS.register("flow-midpoint")
@dataclass(frozen=True)
class FlowMidpoint(Sampler):
    """Explicit midpoint along the straight path, 2 NFE a step. Lipman et al. 2023."""

    def claims(self) -> Claims:
        return Claims(order=2, nfe_per_step=2)

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        return inner_times(MIDPOINT, STRAIGHT, denoiser, t, s)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        return runge_kutta_step(MIDPOINT, STRAIGHT, denoise, x_t, t, s, denoise.inner), None


@SAMPLERS.register("flowturbo")
@dataclass(frozen=True)
class FlowTurbo(Sampler):
    """Heun with a pseudo-corrector: second order at 1 NFE a step. Zhao et al. 2024 (FlowTurbo), Section 3.

    The velocity that corrects a step, taken at its predicted end, is used again as the first of the next step;
    only the first step evaluates twice. The x0 that a step reports is the one at that predicted end.
    """

    def claims(self) -> Claims:
        return Claims(order=2)

    def nfe(self, steps: int) -> int:
        return steps + (steps > 1)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Tensor | None, noise: StepNoise
    ) -> tuple[Tensor, Tensor]:
        slope = STRAIGHT.slope(denoise(x_t, t)) if state is None else state
        y, h = x_t / STRAIGHT.scale(t), STRAIGHT.value(s) - STRAIGHT.value(t)
        corrector = STRAIGHT.slope(denoise(STRAIGHT.scale(s) * (y + h * slope), s))
        return STRAIGHT.scale(s) * (y + h * (slope + corrector) / 2), corrector
