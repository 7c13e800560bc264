"""PNDM and iPNDM: classical weights on past eps, in DDIM's step. Liu et al. 2022; Zhang & Chen 2023."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from dinit.diffusion import Process, Scales
from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import multistep_grid, noise_level_grid, own_last_step, spans_decades
from dinit.samplers.multistep.exponential_weights import choice, form_at, weights
from dinit.samplers.multistep.linear_update import LinearUpdate
from dinit.samplers.multistep.rules import Pseudo, SingleStep
from dinit.samplers.multistep.unified import MultistepSampler, RuleSchedule, StepCoefficients
from dinit.samplers.points import End

PSEUDO = Pseudo("eps", 4, variable="t")
TRAPEZOID = SingleStep("eps", (1.0,), variable="t", variant="midpoint")


@SAMPLERS.register("ipndm")
@dataclass(frozen=True)
class IPNDM(MultistepSampler):
    r"""iPNDM: Adams-Bashforth's weights for equal steps on past eps, in DDIM's step. Zhang & Chen 2023.

    Formula: $\frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + (u_s - u_t)\, \tfrac{1}{24}(55\varepsilon_0 -
        59\varepsilon_1 + 37\varepsilon_2 - 9\varepsilon_3),\quad u = \frac{\sigma}{\alpha}$

    eps_0 is the newest evaluation. The first steps have the weights of orders 1, 2 and 3. The run is of order 2,
    as the weights do not depend on the lengths of the steps. Source: arXiv:2204.13902.
    """

    def claims(self) -> Claims:
        return Claims(order=2)

    def grid_for(self, process: Process) -> TimeGrid:
        return multistep_grid(process, 0.75)

    def end_for(self, process: Process) -> End:
        return own_last_step(process) if spans_decades(process) else "posterior-mean"

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        return RuleSchedule([PSEUDO] * steps, "lower-order")


@SAMPLERS.register("pndm", aliases=("plms",))
@dataclass(frozen=True)
class PNDM(MultistepSampler):
    r"""PNDM: iPNDM's weights after a better start. Liu et al. 2022.

    Formula: $\frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + (u_s - u_t)\, \tfrac{1}{24}(55\varepsilon_0 -
        59\varepsilon_1 + 37\varepsilon_2 - 9\varepsilon_3),\quad u = \frac{\sigma}{\alpha}$

    eps_0 is the newest evaluation. The run is of order 2, as iPNDM's is. Source: arXiv:2202.09778.

    Args:
        start: 'plms', one trapezoidal step of two evaluations, then weights of rising order; 'prk', three steps of
            pseudo Runge-Kutta with four evaluations each (the paper's F-PNDM).

    Raises:
        ValueError: Another start.
    """

    start: Literal["plms", "prk"] = "plms"

    def __post_init__(self) -> None:
        choice("pndm", start=(self.start, Literal["plms", "prk"]))

    def claims(self) -> Claims:
        return Claims(order=2)

    def grid_for(self, process: Process) -> TimeGrid:
        return noise_level_grid(process)

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        first = TRAPEZOID if self.start == "plms" else PSEUDO
        return RuleSchedule([first, *[PSEUDO] * (steps - 1)], "lower-order")

    def coefficients(self, process: Process, points: Sequence[Scales], tail: bool) -> tuple[StepCoefficients, ...]:
        steps = super().coefficients(process, points, tail)
        if self.start == "plms":
            return steps
        started = [runge_kutta(process, t, s) for t, s in pairwise(points[:4])]
        return (*started, *steps[len(started) :])

    def nfe(self, steps: int) -> int:
        return steps + (min(steps - 1, 1) if self.start == "plms" else 3 * min(steps - 1, 3))


def runge_kutta(process: Process, t: Scales, s: Scales) -> StepCoefficients:
    """One step of the classical Runge-Kutta weights, with its middle in t. Liu et al. 2022 (PNDM).

    Args:
        process: The noise process.
        t: Start of the step.
        s: End of the step.

    Raises:
        ValueError: sigma is 0 at s, where the step evaluates eps.
    """
    form = form_at("eps", "t", t, s, (t,))
    if form is None:
        raise ValueError(f"PNDM's Runge-Kutta step evaluates at its end, t = {s.floats.time:g}, where sigma is 0")
    middle = process.scales(torch.as_tensor((t.floats.time + s.floats.time) / 2, dtype=torch.float64))

    def along(end: Scales, newest_first: list[float]) -> LinearUpdate:
        gain, (whole,) = weights(form, process, t, end, (t,))
        return LinearUpdate(form, gain, [whole * part for part in newest_first], 0, tuple(range(len(newest_first))))

    stages = ((middle, along(middle, [1])), (middle, along(middle, [1, 0])), (s, along(s, [1, 0, 0])))
    return StepCoefficients(None, stages, along(s, [1 / 6, 1 / 3, 1 / 3, 1 / 6]), 4)
