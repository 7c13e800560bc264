"""Explicit Runge–Kutta methods by their tableaux, on the probability-flow ODE. Song et al. 2021, Eq. 13."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dinit.diffusion import Denoiser, Scales
from dinit.registry import suggest
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.multistep.ode_variables import TIME, ODEVariable


@dataclass(frozen=True)
class Tableau:
    """Butcher tableau of an explicit method.

    Attributes:
        nodes: Of the stages after the first, in (0, 1], as fractions of the step.
        stages: A row of weights of the earlier slopes for each of them.
        weights: Of all slopes, summing to 1.
        order: Of convergence.
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int = 1


EULER = Tableau((), (), (1,))
MIDPOINT = Tableau((1 / 2,), ((1 / 2,),), (0, 1), 2)
TRAPEZOID = Tableau((1,), ((1,),), (1 / 2, 1 / 2), 2)
HEUN3 = Tableau((1 / 3, 2 / 3), ((1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4), 3)
RK4_CLASSIC = Tableau((1 / 2, 1 / 2, 1), ((1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4)
RK38 = Tableau((1 / 3, 2 / 3, 1), ((1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), 4)


def runge_kutta_step(
    tableau: Tableau,
    ode: ODEVariable,
    denoise: StepDenoiser,
    x_t: Tensor,
    t: Scales,
    s: Scales,
    inner: Sequence[Scales],
) -> Tensor:
    """x_s, (B, C, H, W). inner: scales of the stages after the first, at the nodes of the ode's variable."""
    d = denoise(x_t, t)
    if not tableau.stages:
        return ode.euler(d, s)
    stages = [d]
    for row, node, k in zip(tableau.stages, tableau.nodes, inner, strict=True):
        stages.append(denoise(ode.along(stages, [weight / node for weight in row], k), k))
    return ode.along(stages, tableau.weights, s)


def combined(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """The weighted sum; a slope of weight 0 costs nothing."""
    terms = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return sum(terms[1:], start=terms[0])


def check_finite_velocity(sampler: Sampler, denoiser: Denoiser, points: list[Scales]) -> None:
    """ValueError where the velocity at the last time, which is evaluated, is infinite."""
    if not bool(points[-1].d_sigma.isfinite()):
        raise ValueError(
            f"{type(sampler).__name__} needs the velocity at the last time, t = {float(points[-1].time):g}, where "
            f"it is infinite on {denoiser.process}: end with 'posterior-mean', or at a later time"
        )


class RungeKutta(Sampler):
    """An explicit Runge–Kutta method, as a sampler. Subclasses give its tableau.

    Attributes:
        tableau: Of the method.
        variable: What the steps are taken in: t, unless a subclass names another variable.
    """

    tableau: ClassVar[Tableau]
    variable: ClassVar[ODEVariable] = TIME

    def method(self) -> Tableau:
        """The tableau with the present options."""
        return self.tableau

    def claims(self) -> Claims:
        return Claims(self.method().order, nfe_per_step=len(self.method().weights))

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        if self.variable is TIME and 1 in self.method().nodes:
            check_finite_velocity(self, denoiser, points)

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        times = [self.variable.between(denoiser.process, t, s, node) for node in self.method().nodes]
        return torch.stack(times, dim=-1) if times else super().inner_times(denoiser, t, s, total)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: None, noise: StepNoise
    ) -> tuple[Tensor, None]:
        if s.floats.sigma == 0 and denoise.denoiser.known_at(s):  # no slope there: the step is Euler's
            return runge_kutta_step(EULER, self.variable, denoise, x_t, t, s, ()), None
        return runge_kutta_step(self.method(), self.variable, denoise, x_t, t, s, denoise.inner), None


@SAMPLERS.register("midpoint")
@dataclass(frozen=True)
class Midpoint(RungeKutta):
    r"""Explicit midpoint on the probability-flow ODE, in t: 2 NFE a step, none of them at the step's end.

    Formula: $x_s = x_t + (s - t)\,v\!\left(x_t + \tfrac{1}{2}(s - t)\,v(x_t, t),\ \tfrac{1}{2}(t + s)\right)$
    """

    tableau = MIDPOINT


@SAMPLERS.register("heun3")
@dataclass(frozen=True)
class Heun3(RungeKutta):
    r"""Heun's method of third order, in t: stages at 0, 1/3 and 2/3 of the step, 3 NFE. Heun 1900.

    Formula: $x_s = x_t + (s - t)\left(\tfrac{1}{4} v_0 + \tfrac{3}{4} v_{2/3}\right),\quad v_{2/3} = v(x_t +
        \tfrac{2}{3}(s - t)\,v_{1/3}),\ v_{1/3} = v(x_t + \tfrac{1}{3}(s - t)\,v_0)$
    """

    tableau = HEUN3


@SAMPLERS.register("rk4")
@dataclass(frozen=True)
class RK4(RungeKutta):
    r"""Runge–Kutta of fourth order, in t, 4 NFE a step. Kutta 1901.

    Formula: $x_s = x_t + \tfrac{1}{6}(s - t)(v_1 + 2 v_2 + 2 v_3 + v_4)$

    Args:
        rule: 'classic', as in the formula, or '3/8', which has smaller error coefficients and is what torchdiffeq,
            and with it SiT and flow_matching, call rk4.

    Raises:
        ValueError: Another rule.
    """

    rule: Literal["classic", "3/8"] = "classic"

    tableau = RK4_CLASSIC

    def __post_init__(self) -> None:
        if self.rule not in ("classic", "3/8"):
            raise ValueError(f"unknown rule {self.rule!r}{suggest(str(self.rule), ['classic', '3/8'])}")

    def method(self) -> Tableau:
        return RK38 if self.rule == "3/8" else self.tableau
