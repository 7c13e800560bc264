"""Explicit Runge–Kutta methods on the probability-flow ODE, in t. Song et al. 2021, Eq. 13; Butcher's tableaux."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from dinit.diffusion import Denoiser, Scales
from dinit.registry import suggest
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.multistep.ode_variables import TIME, ODEVariable


@dataclass(frozen=True)
class Tableau:
    """An explicit method. nodes: of the stages after the first, in (0, 1]. stages: a row of weights for each.

    weights: of all stages, summing to 1. order: of convergence.
    """

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int = 1


MIDPOINT = Tableau((1 / 2,), ((1 / 2,),), (0, 1), 2)
TRAPEZOID = Tableau((1,), ((1,),), (1 / 2, 1 / 2), 2)
HEUN3 = Tableau((1 / 3, 2 / 3), ((1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4), 3)
RK4_CLASSIC = Tableau((1 / 2, 1 / 2, 1), ((1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4)
RK38 = Tableau((1 / 3, 2 / 3, 1), ((1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), 4)


def inner_times(tableau: Tableau, ode: ODEVariable, denoiser: Denoiser, t: Scales, s: Scales) -> Tensor:
    """(N, stages - 1): the times of all stages after the first, at nodes of the ode's variable."""
    times = [ode.between(denoiser.process, t, s, node) for node in tableau.nodes]
    return torch.stack(times, dim=-1)


def runge_kutta_step(
    tableau: Tableau,
    ode: ODEVariable,
    denoise: StepDenoiser,
    x_t: Tensor,
    t: Scales,
    s: Scales,
    inner: Sequence[Scales],
) -> Tensor:
    """x_s, (B, C, H, W). inner: the scales of the times that `inner_times` planned for this step."""
    y = x_t / ode.scale(t)
    h = ode.value(s) - ode.value(t)
    slopes = [ode.slope(denoise(x_t, t))]
    for row, k in zip(tableau.stages, inner, strict=True):
        slopes.append(ode.slope(denoise(ode.scale(k) * (y + h * combined(row, slopes)), k)))
    return ode.scale(s) * (y + h * combined(tableau.weights, slopes))


def combined(weights: Sequence[float], slopes: Sequence[Tensor]) -> Tensor:
    """The weighted sum; a slope of weight 0 costs nothing."""
    terms = [weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight]
    return sum(terms[1:], start=terms[0])


def check_finite_velocity(sampler: Sampler, denoiser: Denoiser, points: list[Scales]) -> None:
    """ValueError where the velocity at the last time is asked for and infinite."""
    if not bool(points[-1].d_sigma.isfinite()):
        raise ValueError(
            f"{type(sampler).__name__} asks for the velocity at the last time, t = {float(points[-1].time):g}, "
            "where it "
            f"is infinite on {denoiser.process}: end with 'posterior-mean', or at a later time"
        )


class _RungeKutta(Sampler):
    """What the methods of this file share: a tableau, and steps in t."""

    @property
    def tableau(self) -> Tableau:
        raise NotImplementedError

    def claims(self) -> Claims:
        return Claims(self.tableau.order, nfe_per_step=len(self.tableau.weights))

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        if self.tableau.nodes[-1] == 1:
            check_finite_velocity(self, denoiser, points)

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        return inner_times(self.tableau, TIME, denoiser, t, s)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        return runge_kutta_step(self.tableau, TIME, denoise, x_t, t, s, denoise.inner), None


@SAMPLERS.register("midpoint")
@dataclass(frozen=True)
class Midpoint(_RungeKutta):
    """Explicit midpoint on the probability-flow ODE, in t: 2 NFE a step, none of them at the step's end."""

    @property
    def tableau(self) -> Tableau:
        return MIDPOINT


@SAMPLERS.register("heun3")
@dataclass(frozen=True)
class Heun3(_RungeKutta):
    """Heun's method of third order, in t: stages at 0, 1/3 and 2/3 of the step, 3 NFE. Heun 1900."""

    @property
    def tableau(self) -> Tableau:
        return HEUN3


@SAMPLERS.register("rk4")
@dataclass(frozen=True)
class RK4(_RungeKutta):
    """Runge–Kutta of fourth order, in t, 4 NFE a step. Kutta 1901.

    rule: 'classic', or '3/8', which has smaller error coefficients and is what torchdiffeq, and with it SiT and
    flow_matching, call rk4.
    """

    rule: Literal["classic", "3/8"] = "classic"

    def __post_init__(self) -> None:
        if self.rule not in ("classic", "3/8"):
            raise ValueError(f"unknown rule {self.rule!r}{suggest(str(self.rule), ['classic', '3/8'])}")

    @property
    def tableau(self) -> Tableau:
        return RK4_RULES[self.rule]


RK4_RULES = {"classic": RK4_CLASSIC, "3/8": RK38}
