"""What a rule of a multistep solver is, and the rules that need no history: inner evaluations of one step."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from typing import Any, ClassVar, Literal

from dinit.diffusion import Process, Scales
from dinit.samplers.multistep.exponential_weights import (
    Prediction,
    Variable,
    all_weights,
    choice,
    exponential_form,
    form_at,
    weights,
)
from dinit.samplers.multistep.linear_update import LinearUpdate, Stages, StepUpdates, ddim_update

AllWeights = Sequence[tuple[float, list[float]]]
FEW = 12  # steps whose weights at once cost more than one by one

WarmUp = Literal["lower-order", "corrected", "single-step"]
"""How the first steps of a run, which lack evaluations, are taken.

'lower-order': with the evaluations that there are; the run then has order 2 at most. 'corrected': each of them is
then taken again with the evaluation at its end, at no cost; order 3 at most. 'single-step': as 'corrected', but the
first step is one of three evaluations (Lu et al. 2022, DPM-Solver-3); order 4 at most.
"""


@dataclass(frozen=True)
class Rule(ABC):
    """Coefficients of one step: the base of `Extrapolate`, `SingleStep` and `Pseudo`."""

    registry_name: ClassVar[str]  # of the rule in a record

    @property
    def history(self) -> int:
        """The number of past evaluations that a step uses."""
        return 1

    @property
    def inner_evaluations(self) -> int:
        """Network evaluations of a step besides the one at its start."""
        return 0

    @abstractmethod
    def claimed_order(self, warm_up: WarmUp) -> int:
        """The order of a run that follows this rule throughout.

        Args:
            warm_up: How the first steps, which lack evaluations, are taken.

        Returns:
            The order of convergence.
        """

    @abstractmethod
    def updates(self, process: Process, points: Sequence[Scales], i: int, warm_up: WarmUp) -> StepUpdates:
        """The coefficients of the step from points[i] to points[i + 1].

        Args:
            process: The noise process of the run.
            points: The scales at the ends of all steps, N + 1 of them.
            i: Number of the step, 0 .. N - 1.
            warm_up: How the first steps, which lack evaluations, are taken.

        Returns:
            Inner stages, if any, and the update to points[i + 1].
        """

    def all_updates(
        self, process: Process, points: Sequence[Scales], steps: range, warm_up: WarmUp
    ) -> list[StepUpdates]:
        """`updates` of consecutive steps, with the same numbers; a subclass may compute them at once.

        Args:
            process: The noise process of the run.
            points: The scales at the ends of all steps.
            steps: Numbers of the steps.
            warm_up: How the first steps are taken.
        """
        return [self.updates(process, points, i, warm_up) for i in steps]

    def to_config(self) -> dict[str, Any]:
        """Plain values, without infinities, that `rule_from_config` reads."""
        values = {k: None if v == math.inf else v for k, v in asdict(self).items()}
        return {"name": self.registry_name, **values}


@dataclass(frozen=True)
class SingleStep(Rule):
    """A step without history: inner evaluations at fractions of it. Lu et al. 2022 (DPM-Solver), Algorithms 1, 2.

    Each stage and the end use the evaluation at t and the newest one. One stage gives order 2 at any fraction; two
    give order 3 at (1/3, 2/3).

    Args:
        prediction: The network's output that is extrapolated.
        stages: Fractions of the step in (0, 1], one or two.
        variable: What the fractions and the polynomial are taken in.
        variant: What stands in place of the last exact integral: see `exponential_weights.weights`.

    Raises:
        ValueError: An option out of range.
    """

    registry_name = "single-step"

    prediction: Prediction
    stages: tuple[float, ...]
    _: KW_ONLY
    variable: Variable = "log-snr"
    variant: Literal["exact", "midpoint", "bh1", "taylor"] = "exact"

    def __post_init__(self) -> None:
        choice("rule", prediction=(self.prediction, Prediction), variable=(self.variable, Variable))
        choice("rule", variant=(self.variant, Literal["exact", "midpoint", "bh1", "taylor"]))
        object.__setattr__(self, "stages", tuple(self.stages))
        if not 1 <= len(self.stages) <= 2 or not all(0 < fraction <= 1 for fraction in self.stages):
            raise ValueError(f"rule: stages must be one or two fractions in (0, 1], got {self.stages!r}")

    @property
    def inner_evaluations(self) -> int:
        return len(self.stages)

    def claimed_order(self, warm_up: WarmUp) -> int:
        return 3 if self.stages == (1 / 3, 2 / 3) and self.variant == "exact" else 2

    def updates(self, process: Process, points: Sequence[Scales], i: int, warm_up: WarmUp) -> StepUpdates:
        t, s = points[i], points[i + 1]
        form = form_at(self.prediction, self.variable, t, s, (t,))
        if form is None:  # only DDIM's step is finite at sigma_s = 0
            return StepUpdates((), ddim_update(t, s))
        stages: Stages = ()
        known = [t]
        for fraction in self.stages:
            at = form.between(process, t, s, fraction)
            nodes, taken = _of_two(known)
            stages = (*stages, (at, LinearUpdate(form, *weights(form, process, t, at, nodes), 0, taken)))
            known.append(at)
        nodes, taken = _of_two(known)
        return StepUpdates(stages, LinearUpdate(form, *weights(form, process, t, s, nodes, self.variant), 0, taken))

    def all_updates(
        self, process: Process, points: Sequence[Scales], steps: range, warm_up: WarmUp
    ) -> list[StepUpdates]:
        regular = [i for i in steps if points[i].floats.alpha > 0 and points[i + 1].floats.sigma > 0]
        if len(regular) < FEW:
            return super().all_updates(process, points, steps, warm_up)
        first = regular[0]
        form, t, s = exponential_form(self.prediction, self.variable), points[first], points[first + 1]
        known: list[Scales] = [t]
        columns: list[tuple[Sequence[Scales], int, AllWeights, int, tuple[int, ...]]] = []
        for fraction in self.stages:
            ats, place = form.all_between(process, t, s, fraction) if fraction < 1 else (points, first + 1)
            nodes, taken = _of_two(known)
            rows, at = all_weights(form, process, t, ats[place], nodes)
            columns.append((ats, place, rows, at, taken))
            known.append(ats[place])
        nodes, taken = _of_two(known)
        rows, at = all_weights(form, process, t, s, nodes, self.variant)
        found = {}
        for i in regular:
            j = i - first
            stages = [
                (ats[place + j], LinearUpdate(form, *ahead[of + j], 0, which))
                for ats, place, ahead, of, which in columns
            ]
            found[i] = StepUpdates(tuple(stages), LinearUpdate(form, *rows[at + j], 0, taken))
        return [found.get(i) or self.updates(process, points, i, warm_up) for i in steps]


def _of_two(known: list[Scales]) -> tuple[list[Scales], tuple[int, ...]]:
    """The last of the known evaluations and the first, t; and their numbers, counted back from the last."""
    return ([known[-1], known[0]], (0, len(known) - 1)) if len(known) > 1 else ([known[0]], (0,))
