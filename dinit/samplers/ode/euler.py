"""Euler and Heun on the probability-flow ODE dx/dt = velocity(x, t). Song et al. 2021 (score SDE), Eq. 13."""

from __future__ import annotations

from dataclasses import dataclass

from dinit.samplers.base import SAMPLERS
from dinit.samplers.ode.runge_kutta import EULER, TRAPEZOID, RungeKutta


@SAMPLERS.register("euler")
@dataclass(frozen=True)
class Euler(RungeKutta):
    r"""Explicit Euler on the probability-flow ODE, in t. On the linear path this is flow-matching Euler.

    Formula: $x_s = x_t + (s - t)\,v(x_t, t)$
    """

    tableau = EULER


@SAMPLERS.register("heun")
@dataclass(frozen=True)
class Heun(RungeKutta):
    r"""Explicit trapezoid on the probability-flow ODE, in t, 2 NFE a step.

    Formula: $x_s = x_t + \tfrac{1}{2}(s - t)\left(v(x_t, t) + v(x_t + (s-t)\,v(x_t, t),\, s)\right)$

    Karras et al. 2022, Algorithm 1, in t; arXiv:2206.00364. EDM's own Heun, in the noise level, is 'edm-heun'.
    """

    tableau = TRAPEZOID
