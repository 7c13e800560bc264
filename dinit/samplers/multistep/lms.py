"""LMS: linear multistep in sigma / alpha, as in k-diffusion."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from dinit.diffusion import Process
from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import multistep_grid, noise_level_grid, own_last_step, spans_decades
from dinit.samplers.multistep.exponential_weights import check_order, choice
from dinit.samplers.multistep.rules import Extrapolate, WarmUp
from dinit.samplers.multistep.unified import MultistepSampler, RuleSchedule
from dinit.samplers.points import End


@SAMPLERS.register("lms", aliases=("k-lms",))
@dataclass(frozen=True)
class LMS(MultistepSampler):
    r"""Linear multistep in the noise level: Adams-Bashforth with weights for unequal steps. k-diffusion; no paper.

    Formula: $\frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + \int_{u_t}^{u_s} P(u)\,du,\quad u =
        \frac{\sigma}{\alpha},\quad P \text{ the polynomial in } u \text{ through the last } \varepsilon$

    The ODE is d(x / alpha) = eps du. With the nodes u_j and their Lagrange polynomials L_j the step is x_s /
    alpha_s = x_t / alpha_t + sum_j eps_j w_j, w_j the integral of L_j(u) from u_t to u_s.

    With end='state' on times down to 0 the last step uses all evaluations, as in k-diffusion.

    Args:
        order: Evaluations extrapolated, 1 (DDIM) to 4.
        warm_up: How the first steps, which lack evaluations, are taken: 'lower-order' (k-diffusion's, and the
            better one at few evaluations), 'corrected' (for order 3) or 'single-step'; see `rules.WarmUp`.

    Raises:
        ValueError: An option out of its range.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    order: int = 4
    warm_up: WarmUp = "lower-order"

    def __post_init__(self) -> None:
        check_order("lms", self.order)
        choice("lms", warm_up=(self.warm_up, WarmUp))

    def grid_for(self, process: Process) -> TimeGrid:
        return multistep_grid(process, 0.92, noise_level_grid)

    def end_for(self, process: Process) -> End:
        return own_last_step(process) if spans_decades(process) else "posterior-mean"

    def claims(self) -> Claims:
        return Claims(self.rule.claimed_order(self.warm_up))

    @property
    def rule(self) -> Extrapolate:
        """The rule of every step."""
        return Extrapolate("eps", self.order, variable="own")

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        return RuleSchedule([self.rule] * steps, self.warm_up)
