"""Solver to begin with: chosen by the number of evaluations, from measured errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dinit.diffusion import Process
from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import own_last_step
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.multistep.rules import Corrector, Extrapolate
from dinit.samplers.multistep.unified import MultistepSampler, RuleSchedule, Unified
from dinit.samplers.points import End


def _corrected(prediction: Literal["velocity", "v"], order: int, *differences: float) -> Unified:
    corrector = Corrector()
    rule = Extrapolate(prediction, order, variable="own", corrector=corrector, difference_weights=differences)
    return Unified((rule,))


FEW, SOME, MANY = _corrected("velocity", 2), _corrected("v", 3, 1, 0.3), _corrected("v", 4, 1, 1, 0.5)
SOME_FROM, MANY_FROM = 8, 13  # evaluations from which on they are the more accurate
SHIFTS = {FEW: 0.65, SOME: 0.78, MANY: 0.65}  # of their times


@SAMPLERS.register("auto")
@dataclass(frozen=True)
class Auto(MultistepSampler):
    r"""The solver to begin with: corrected Adams methods, by the number of evaluations. Bashforth & Adams 1883.

    Formula: $\frac{x_s}{r_s} = \frac{x_t}{r_t} + \int_{\theta_t}^{\theta_s} P(\theta)\,d\theta,\quad \theta =
        \arctan\frac{\sigma}{\alpha},\quad r = \sqrt{\alpha^2 + \sigma^2}$

    P is a polynomial through the last predictions of v = (alpha eps - sigma x0) / r: three of them in runs of 8 to
    12 evaluations, with 0.3 of its second difference, and four in longer ones, with half of its third. In shorter
    runs it is the line through two predictions of the velocity eps - x0, with r = alpha + sigma and theta = sigma
    / r. The evaluation at a step's end corrects the step at no cost. A pipeline's manifest records the solver that
    was chosen. The times are denser near the data than even ones, and the run ends with the solver's own step to
    t = 0 where the process has no noise there. `benchmarks/defaults.py` measures the errors that decide.
    """

    def chosen(self, evaluations: int) -> Unified:
        if evaluations < SOME_FROM:
            return FEW
        return SOME if evaluations < MANY_FROM else MANY

    def grid_for(self, process: Process) -> TimeGrid:
        return self.grid_for_run(process, MANY_FROM)

    def grid_for_run(self, process: Process, evaluations: int) -> TimeGrid:
        return Shifted(SHIFTS[self.chosen(evaluations)])

    def end_for(self, process: Process) -> End:
        return own_last_step(process)

    def claims(self) -> Claims:
        return Claims(order=3)

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        return self.chosen(steps + tail).schedule_for(steps, tail)
