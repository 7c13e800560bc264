"""Linear multistep in sigma / alpha, the solver that k-diffusion calls LMS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dinit.diffusion import Process
from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import noise_level_grid
from dinit.samplers.multistep.exponential_weights import check_order, choice
from dinit.samplers.multistep.rules import Extrapolate, WarmUp
from dinit.samplers.multistep.unified import MultistepSampler, RuleSchedule


@SAMPLERS.register("lms", aliases=("k-lms",))
@dataclass(frozen=True)
class LMS(MultistepSampler):
    """Adams-Bashforth on d(x / alpha) = eps d(sigma / alpha), weights for unequal steps. k-diffusion; no paper.

    order: evaluations extrapolated, 1 (DDIM) to 4. warm_up: see `WarmUp`; 'lower-order' is k-diffusion's,
    and at few evaluations better than 'corrected', which has order 3. Theirs takes the last step, to sigma = 0,
    with all of them; so does this one with end='state' on times to 0.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    order: int = 4
    warm_up: WarmUp = "lower-order"

    def __post_init__(self) -> None:
        check_order("lms", self.order)
        choice("lms", warm_up=(self.warm_up, WarmUp))

    def grid_for(self, process: Process) -> TimeGrid:
        return noise_level_grid(process)

    def claims(self) -> Claims:
        return Claims(self.rule.claimed_order(self.warm_up))

    @property
    def rule(self) -> Extrapolate:
        """What every step follows."""
        return Extrapolate("eps", self.order, variable="own")

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        return RuleSchedule([self.rule] * steps, self.warm_up)
