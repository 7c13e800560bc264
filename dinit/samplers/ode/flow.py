"""Solvers along the straight path of flow matching, in u = sigma / (alpha + sigma).

Every path is the straight one after division by alpha + sigma, so they run on any process. On linear flow u is
sigma and the state is not rescaled: these are the solvers that flow matching takes in sigma, whatever the
resolution shift, where 'euler', 'heun' and 'midpoint' step in t (the same without a shift).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dinit.diffusion import Scales
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.multistep.ode_variables import STRAIGHT
from dinit.samplers.ode.runge_kutta import EULER, MIDPOINT, TRAPEZOID, RungeKutta


@SAMPLERS.register("flow-euler", aliases=("flow-match-euler",), special_case_of="ddim")
@dataclass(frozen=True)
class FlowEuler(RungeKutta):
    r"""Euler along the straight path (1 - u) x0 + u eps of flow matching. In other words, DDIM.

    Formula: $y_s = y_t + (u_s - u_t)(\varepsilon - x_0),\quad y = \frac{x}{\alpha + \sigma},\ u =
        \frac{\sigma}{\alpha + \sigma}$

    Liu et al. 2023 (Rectified Flow); arXiv:2209.03003.
    """

    tableau = EULER
    variable = STRAIGHT


@SAMPLERS.register("flow-heun", aliases=("flow-match-heun",))
@dataclass(frozen=True)
class FlowHeun(RungeKutta):
    r"""Explicit trapezoid along the straight path of flow matching, 2 NFE a step.

    Formula: $y_s = y_t + \tfrac{1}{2}(u_s - u_t)\left(d(y_t, u_t) + d(y_t + (u_s - u_t)\,d(y_t, u_t),\,
        u_s)\right),\quad d = \varepsilon - x_0$

    The path is that of Liu et al. 2023 (Rectified Flow); arXiv:2209.03003.
    """

    tableau = TRAPEZOID
    variable = STRAIGHT


@SAMPLERS.register("flow-midpoint")
@dataclass(frozen=True)
class FlowMidpoint(RungeKutta):
    r"""Explicit midpoint along the straight path of flow matching, 2 NFE a step.

    Formula: $y_s = y_t + (u_s - u_t)\,d(y_m, u_m),\quad u_m = \tfrac{1}{2}(u_t + u_s),\ y_m = y_t + (u_m -
        u_t)\,d(y_t, u_t),\quad d = \varepsilon - x_0$

    The path is that of Lipman et al. 2023 (Flow Matching); arXiv:2210.02747.
    """

    tableau = MIDPOINT
    variable = STRAIGHT


@SAMPLERS.register("flowturbo")
@dataclass(frozen=True)
class FlowTurbo(Sampler):
    r"""Heun with a pseudo-corrector: second order at 1 NFE a step.

    Formula: $y_s = y_t + \tfrac{1}{2}(u_s - u_t)(\tilde d_t + \tilde d_s),\quad \tilde d_s = d(y_t + (u_s -
        u_t)\,\tilde d_t,\, u_s),\quad d = \varepsilon - x_0$

    The velocity that corrects a step, taken at its predicted end, is used again as the first of the next step;
    only the first step evaluates twice. The x0 that a step reports is the one at that predicted end. Zhao et al.
    2024 (FlowTurbo), Section 3; arXiv:2409.18128.
    """

    def claims(self) -> Claims:
        return Claims(order=2)

    def nfe(self, steps: int) -> int:
        return steps + (steps > 1)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Tensor | None, noise: StepNoise
    ) -> tuple[Tensor, Tensor]:
        slope = STRAIGHT.slope(denoise(x_t, t)) if state is None else state
        y, h = x_t / STRAIGHT.scale_at(t), STRAIGHT.at(s) - STRAIGHT.at(t)
        if s.floats.sigma == 0 and denoise.denoiser.known_at(s):  # no slope there: the step is Euler's
            if state is not None:
                slope = STRAIGHT.slope(denoise(x_t, t))
            return STRAIGHT.scale_at(s) * (y + h * slope), slope
        corrector = STRAIGHT.slope(denoise(STRAIGHT.scale_at(s) * (y + h * slope), s))
        return STRAIGHT.scale_at(s) * (y + h * (slope + corrector) / 2), corrector
