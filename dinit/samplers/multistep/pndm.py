"""Pseudo numerical methods: classical weights on eps, moved by DDIM's step. Liu et al. 2022; Zhang & Chen 2023."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from dinit.diffusion import Process, Scales
from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.grids.base import TimeGrid, noise_level_grid
from dinit.samplers.multistep.exponential_weights import choice, form_at, weights
from dinit.samplers.multistep.unified import Planned, Rule, StepPlan, Sum, WarmUp, plan_steps

PSEUDO = Rule("eps", 4, False, "t", "pseudo")


@SAMPLERS.register("ipndm")
@dataclass(frozen=True)
class IPNDM(Planned):
    """iPNDM: Adams-Bashforth's weights for equal steps on past eps, DDIM's step. Zhang & Chen 2023.

    Orders 1, 2, 3, 4 as evaluations come in. Of order 2, as the weights know nothing of the step's own integral.
    """

    def claims(self) -> Claims:
        return Claims(order=2)

    @property
    def warm(self) -> WarmUp:
        return "lower-order"

    def rules(self, steps: int, tail: bool) -> list[Rule]:
        return [PSEUDO] * steps


@SAMPLERS.register("pndm", aliases=("plms",))
@dataclass(frozen=True)
class PNDM(Planned):
    """PNDM: iPNDM's weights after a better start. Liu et al. 2022.

    start: 'plms', a first step of two evaluations, the trapezoid's; 'prk', three steps of pseudo Runge-Kutta with
    four evaluations each (the paper's F-PNDM). Of order 2, as iPNDM.
    """

    start: Literal["plms", "prk"] = "plms"

    def __post_init__(self) -> None:
        choice("pndm", start=(self.start, Literal["plms", "prk"]))

    def claims(self) -> Claims:
        return Claims(order=2)

    def grid_for(self, process: Process) -> TimeGrid:
        return noise_level_grid(process)

    @property
    def warm(self) -> WarmUp:
        return "lower-order"

    def rules(self, steps: int, tail: bool) -> list[Rule]:
        first = Rule("eps", 1, False, "t", "midpoint", stages=(1.0,))
        return ([first] + [PSEUDO] * (steps - 1) if self.start == "plms" else [PSEUDO] * steps)[:steps]

    def plan(self, process: Process, points: list[Scales], tail: bool) -> tuple[StepPlan, ...]:
        plans = plan_steps(process, points, self.rules(len(points) - 1, tail), self.warm)
        if self.start == "plms":
            return plans
        started = [runge_kutta(process, t, s) for t, s in pairwise(points[:4])]
        return (*started, *plans[len(started) :])

    def nfe(self, steps: int) -> int:
        return steps + (min(steps - 1, 1) if self.start == "plms" else 3 * min(steps - 1, 3))


def runge_kutta(process: Process, t: Scales, s: Scales) -> StepPlan:
    """One step of the classical Runge-Kutta weights, its middle in t. Liu et al. 2022 (PNDM)."""
    form = form_at("eps", "t", t, s, (t,))
    if form is None:
        raise ValueError(f"PNDM's Runge-Kutta step evaluates at its end, t = {s.floats.time:g}, where sigma is 0")
    middle = process.scales(torch.as_tensor((t.floats.time + s.floats.time) / 2, dtype=torch.float64))

    def along(end: Scales, newest_first: list[float]) -> Sum:
        gain, (whole,) = weights(form, process, t, end, (t,))
        return Sum(form, gain, [whole * part for part in newest_first], 0, tuple(range(len(newest_first))))

    stages = ((middle, along(middle, [1])), (middle, along(middle, [1, 0])), (s, along(s, [1, 0, 0])))
    return StepPlan(None, stages, along(s, [1 / 6, 1 / 3, 1 / 3, 1 / 6]), 4)
