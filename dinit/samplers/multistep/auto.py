"""Solver to begin with: chosen by the number of evaluations, from measured errors."""

from __future__ import annotations

from dataclasses import dataclass

from dinit.diffusion import Process
from dinit.samplers.base import SAMPLERS, Claims, Sampler
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import own_last_step
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.multistep.adams import AdamsBashforth
from dinit.samplers.multistep.rules import Corrector, Extrapolate
from dinit.samplers.multistep.unified import MultistepSampler, RuleSchedule, Unified
from dinit.samplers.points import End

FEW = Unified((Extrapolate("v", 2, variable="own", corrector=Corrector()),))
MANY = AdamsBashforth(4, "v", "lower-order")
SHIFTS = {FEW: 0.75, MANY: 0.92}  # of their times
FEWEST = 12  # evaluations from which on MANY is the more accurate


@SAMPLERS.register("auto")
@dataclass(frozen=True)
class Auto(MultistepSampler):
    r"""The solver to begin with: Adams methods in v, by the number of evaluations. Bashforth & Adams 1883.

    Formula: $\frac{x_s}{r_s} = \frac{x_t}{r_t} + \int_{\theta_t}^{\theta_s} P(\theta)\,d\theta,\quad \theta =
        \arctan\frac{\sigma}{\alpha},\quad r = \sqrt{\alpha^2 + \sigma^2}$

    P is a polynomial through the last predictions of v = (alpha eps - sigma x0) / r. In runs of fewer than 12
    evaluations it has two of them, and the evaluation at a step's end corrects the step at no cost; in longer ones
    it has four (Adams-Bashforth). A pipeline's manifest records the solver that was chosen. The times are denser
    near the data than even ones, and the run ends with the solver's own step to t = 0 where the process has no
    noise there: `benchmarks/defaults.py` measures the errors that decide.
    """

    def chosen(self, evaluations: int) -> Sampler:
        return FEW if evaluations < FEWEST else MANY

    def grid_for(self, process: Process) -> TimeGrid:
        return self.grid_for_run(process, FEWEST)

    def grid_for_run(self, process: Process, evaluations: int) -> TimeGrid:
        return Shifted(SHIFTS[self.chosen(evaluations)])

    def end_for(self, process: Process) -> End:
        return own_last_step(process)

    def claims(self) -> Claims:
        return Claims(order=2)

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        chosen = self.chosen(steps + tail)
        assert isinstance(chosen, MultistepSampler)
        return chosen.schedule_for(steps, tail)
