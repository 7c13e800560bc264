"""Samplers that follow a schedule of rules, one a step: the base of every exponential and multistep solver.

The named solvers are schedules of the rules of rules.py. All coefficients of a run are computed before it, in
float64; the loop is weighted sums of tensors.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from torch import Tensor

from dinit.diffusion import Denoiser, Process, Scales
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import multistep_grid
from dinit.samplers.multistep.exponential_weights import choice
from dinit.samplers.multistep.linear_update import Evaluation, LinearUpdate, Stages, StepUpdates
from dinit.samplers.multistep.ode_variables import NOISE_LEVEL
from dinit.samplers.multistep.rule_files import rule_from_config
from dinit.samplers.multistep.rules import (
    Corrector,
    Extrapolate,
    HistoryRule,
    Rule,
    SingleStep,
    WarmUp,
)

HUGE_NOISE = 1000.0
"""Noise level from which on steps in it are computed in float64.

A step from there is a difference of two terms that are larger than the state by as much: (alpha_s / alpha_t) x_t
and w eps. In float32 their rounding is seen in the images, and so is that of earlier states, which eps repeats.
"""


class StepCoefficients(NamedTuple):
    """All that one step does, in this order.

    Attributes:
        correct: On arrival at t: the step before, again; None: nothing.
        stages: Inner evaluations.
        advance: To s.
        keep: Evaluations that the steps after it may look back to.
    """

    correct: LinearUpdate | None
    stages: Stages
    advance: LinearUpdate
    keep: int

    @property
    def in_noise_level(self) -> bool:
        """Whether a prediction of eps is weighed."""
        updates = (self.correct, self.advance, *(update for _, update in self.stages))
        return any(update is not None and update.form.ode is NOISE_LEVEL for update in updates)


class MultistepState(NamedTuple):
    """The state of a run.

    Attributes:
        ahead: Coefficients of the steps to come.
        past: Past evaluations, the newest first.
        in_float64: Whether states are kept in float64.
        arrived: Where they are, the end of the last step, as it was returned and in float64.
    """

    ahead: tuple[StepCoefficients, ...]
    past: tuple[Evaluation, ...] = ()
    in_float64: bool = False
    arrived: tuple[Tensor, Tensor] | None = None

    def unrounded(self, x_t: Tensor) -> Tensor:
        """The state x_t in the precision of the steps."""
        if not self.in_float64 or not isinstance(x_t, Tensor) or x_t.device.type == "mps":  # which has no float64
            return x_t
        if self.arrived is not None and self.arrived[0] is x_t:
            return self.arrived[1]
        return x_t.double()


@dataclass(frozen=True)
class RuleSchedule:
    """The rules of a run's steps, one each, and how its first steps make up for missing evaluations."""

    rules: Sequence[Rule]
    warm_up: WarmUp = "corrected"

    def coefficients(self, process: Process, points: Sequence[Scales]) -> tuple[StepCoefficients, ...]:
        """All coefficients of a run over the points, one more than there are rules."""
        updates: list[StepUpdates] = []
        for rule, alike in groupby(self.rules):
            here = range(len(updates), len(updates) + len([*alike]))
            updates += rule.all_updates(process, points, here, self.warm_up)
        corrections = [None, *(correction for _, _, correction in updates)]
        keep = max(rule.history for rule, _ in groupby(self.rules))
        return tuple(
            StepCoefficients(correct, stages, advance, keep)
            for correct, (stages, advance, _) in zip(corrections, updates, strict=False)
        )

    @property
    def evaluations(self) -> int:
        """Network evaluations of all steps, where none of them is cut short by an end of the path."""
        count = len(self.rules) + sum(rule.inner_evaluations for rule in self.rules)
        first = self.rules[0]
        single = self.warm_up == "single-step" and isinstance(first, HistoryRule) and first.order > 1
        return count + 2 * single


@dataclass(frozen=True)
class MultistepSampler(Sampler):
    """A solver that is a schedule of rules: subclasses decide which rule each step follows."""

    def grid_for(self, process: Process) -> TimeGrid:
        return multistep_grid(process)

    @abstractmethod
    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        """One rule for each of a run's steps.

        Args:
            steps: Moves of the run, at least 1.
            tail: Whether a posterior mean follows them.
        """

    def coefficients(self, process: Process, points: Sequence[Scales], tail: bool) -> tuple[StepCoefficients, ...]:
        """All coefficients of a run over the points. tail: as in `schedule_for`."""
        return self.schedule_for(len(points) - 1, tail).coefficients(process, points)

    def init(self, denoiser: Denoiser, points: list[Scales], total: int) -> MultistepState:
        if len(points) < 2:
            return MultistepState(())
        steps = self.coefficients(denoiser.process, points, total == len(points))
        for at in (at for step in steps for at, _ in step.stages):
            _ = at.floats  # read back here, so that the loop does not
        huge = points[0].floats.sigma > HUGE_NOISE * points[0].floats.alpha
        return MultistepState(steps, in_float64=huge and any(step.in_noise_level for step in steps))

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: MultistepState, noise: StepNoise
    ) -> tuple[Tensor, MultistepState]:
        now = state.ahead[0]
        x = state.unrounded(x_t)
        rounds = x is not x_t

        def evaluated(x: Tensor, at: Scales) -> Evaluation:
            if rounds:
                return Evaluation.in_float64(denoise(x.to(x_t.dtype), at), x)
            return Evaluation(denoise(x, at), x, {})

        past = (evaluated(x, t), *state.past)
        if now.correct is not None:
            corrected = now.correct.apply(past[now.correct.steps_back].state, past)
            past = (past[0]._replace(state=corrected), *state.past)
        inner: tuple[Evaluation, ...] = ()
        for at, update in now.stages:
            inner = (evaluated(update.apply(past[0].state, (*inner, *past)), at), *inner)
        x = now.advance.apply(past[now.advance.steps_back].state, (*inner, *past))
        x_s = x.to(x_t.dtype) if rounds else x
        return x_s, MultistepState(state.ahead[1:], past[: now.keep], state.in_float64, (x_s, x))

    def nfe(self, steps: int) -> int:
        return 1 + (self.schedule_for(steps - 1, True).evaluations if steps > 1 else 0)


@SAMPLERS.register("unified")
@dataclass(frozen=True)
class Unified(MultistepSampler):
    r"""Any schedule of rules, one a step; the last is repeated for the steps that follow. Liu et al. 2023 (USF).

    Formula: $x_s = \frac{\rho_s}{\rho_t} x_t + \rho_s \int_{u_t}^{u_s} P_i\,du,\quad P_i \text{ the polynomial of
        step } i \text{: its order, prediction, variable and corrector are free}$

    rho and u belong to the prediction, as in `AdamsBashforth`. Source: arXiv:2312.07243.

    Args:
        schedule: Rules (`Extrapolate`, `SingleStep`, `Pseudo`), or mappings that `rule_from_config` reads.
        warm_up: How the first steps, which lack evaluations, are taken: see `rules.WarmUp`.

    Raises:
        ValueError: No rule, or one that cannot be read.
    """

    schedule: tuple[Rule, ...] = (Extrapolate(corrector=Corrector(), max_step_ratio=2.0),)
    warm_up: WarmUp = "corrected"

    def __post_init__(self) -> None:
        choice("unified", warm_up=(self.warm_up, WarmUp))
        rules = tuple(rule_from_config(r) if isinstance(r, Mapping) else r for r in self.schedule)
        if not rules or not all(isinstance(r, Rule) for r in rules):
            raise ValueError(f"unified: schedule needs at least one rule, got {self.schedule!r}")
        object.__setattr__(self, "schedule", rules)

    def grid_for(self, process: Process) -> TimeGrid:
        kinds = {rule.prediction for rule in self.schedule if isinstance(rule, HistoryRule | SingleStep)}
        return multistep_grid(process, 0.5 if "x0" in kinds else 0.75)

    def claims(self) -> Claims:
        """The order is the least that any of its steps has and the warm-up allows."""
        order = min(rule.claimed_order(self.warm_up) for rule in self.schedule)
        return Claims(order, nfe_per_step=1 + max(rule.inner_evaluations for rule in self.schedule))

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        return RuleSchedule([*self.schedule, *[self.schedule[-1]] * steps][:steps], self.warm_up)

    def to_config(self) -> dict[str, Any]:
        """A mapping of plain values that `SAMPLERS.create` turns back into this sampler."""
        return {"name": "unified", "schedule": [r.to_config() for r in self.schedule], "warm_up": self.warm_up}
