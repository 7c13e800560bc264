"""Rules of exponential and multistep solvers: how one step is taken, and its coefficients.

Liu et al. 2023, "A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models" (USF),
arXiv:2312.07243. A rule chooses the prediction (eps, x0, v, ...), the variable in which it is extrapolated, the
number of past evaluations, and whether the evaluation at the step's end corrects the step at no cost (UniC, Zhao
et al. 2023). Rules of one run may differ; unified.py makes samplers of them.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal

from dinit.diffusion import Process, Scales
from dinit.samplers.multistep.exponential_weights import (
    ExponentialForm,
    Prediction,
    Variable,
    Variant,
    all_weights,
    check_order,
    choice,
    exponential_form,
    form_at,
    weights,
)
from dinit.samplers.multistep.linear_update import LinearUpdate, StepUpdates, ddim_update
from dinit.samplers.multistep.single_step import FEW, Rule, SingleStep, WarmUp


@dataclass(frozen=True)
class Corrector:
    """Correction of a step by the evaluation at its end, which the next step makes anyway. Zhao et al. 2023 (UniC).

    Args:
        variant: What stands in place of the exact integral: see `exponential_weights.weights`.
        start_only: Correct only steps that lack evaluations at the start of a run, where `warm_up` corrects them.
    """

    registry_name: ClassVar[str] = "corrector"

    variant: Variant = "exact"
    start_only: bool = False

    def __post_init__(self) -> None:
        choice("corrector", variant=(self.variant, Variant))


_AT_START = Corrector(start_only=True)


@dataclass(frozen=True)
class HistoryRule(Rule):
    """Base of the rules that use past evaluations: `Extrapolate` and `Pseudo`."""

    prediction: Prediction = "x0"
    order: int = 3
    _: KW_ONLY
    variable: Variable = "log-snr"
    corrector: Corrector | None = None
    start_steps_back: int = 0
    max_step_ratio: float = math.inf

    def __post_init__(self) -> None:
        choice("rule", prediction=(self.prediction, Prediction), variable=(self.variable, Variable))
        check_order("rule", self.order)
        if self.start_steps_back not in (0, 1, 2):
            raise ValueError(f"rule: start_steps_back must be 0, 1 or 2, got {self.start_steps_back!r}")
        if not self.max_step_ratio > 0:
            raise ValueError(f"rule: max_step_ratio must be positive, got {self.max_step_ratio!r}")

    @property
    def history(self) -> int:
        return max(self.order, self.start_steps_back + 1)

    @property
    @abstractmethod
    def own_order(self) -> int:
        """The order of the method with all its evaluations and without a corrector."""

    def claimed_order(self, warm_up: WarmUp) -> int:
        corrected = self.corrector is not None and not self.corrector.start_only
        start = {"lower-order": 3 if corrected else 2, "corrected": 3, "single-step": 4}[warm_up]
        return min(self.own_order + corrected, start)

    @abstractmethod
    def weights(
        self, form: ExponentialForm, process: Process, t: Scales, s: Scales, nodes: Sequence[Scales]
    ) -> tuple[float, list[float]]:
        """The weight of the state at t and those of F at the nodes, the newest first."""

    @abstractmethod
    def all_weights(
        self, form: ExponentialForm, process: Process, t: Scales, s: Scales, nodes: Sequence[Scales]
    ) -> tuple[Sequence[tuple[float, list[float]]], int]:
        """`weights` of all steps that stand alike in the run, and the place of this one among them."""

    def updates(self, process: Process, points: Sequence[Scales], i: int, warm_up: WarmUp) -> StepUpdates:
        t, s = points[i], points[i + 1]
        back = min(self.start_steps_back, i)
        taken = (0, 2) if back == 2 and self.order == 2 else tuple(range(min(self.order, i + 1)))
        starting = len(taken) < self.order
        if starting and i == 0 and warm_up == "single-step":
            first = SingleStep(self.prediction, (1 / 3, 2 / 3), variable=self.variable)
            return first.updates(process, points, i, warm_up)  # better than its correction would be
        nodes = [points[i - j] for j in taken]
        start, form = points[i - back], form_at(self.prediction, self.variable, t, s, nodes)
        longer = (
            len(nodes) > 2 and self.max_step_ratio < math.inf and _step_ratio(form, s, nodes) > self.max_step_ratio
        )
        if longer:
            nodes, taken = nodes[:2], taken[:2]
        if longer or back:
            form = form_at(self.prediction, self.variable, start, s, nodes)
        if form is None:
            advance = ddim_update(start, s, back)
        else:
            advance = LinearUpdate(form, *self.weights(form, process, start, s, nodes), back, taken)
        corrector = self.corrector or _AT_START
        wanted = (starting and warm_up != "lower-order") or not corrector.start_only
        if not wanted or s.floats.sigma == 0:
            return StepUpdates((), advance)
        return StepUpdates((), advance, self._correction(process, t, s, nodes, corrector.variant))

    def all_updates(
        self, process: Process, points: Sequence[Scales], steps: range, warm_up: WarmUp
    ) -> list[StepUpdates]:
        form = exponential_form(self.prediction, self.variable)
        regular = [i for i in steps if self._is_regular(form, points, i)]
        if len(regular) < FEW:
            return super().all_updates(process, points, steps, warm_up)
        first = regular[0]
        t, s, nodes = points[first], points[first + 1], [points[first - j] for j in range(self.order)]
        rows, at = self.all_weights(form, process, t, s, nodes)
        taken, with_end = tuple(range(self.order)), tuple(range(self.order + 1))
        found = {i: LinearUpdate(form, *rows[at + i - first], 0, taken) for i in regular}
        corrected: dict[int, LinearUpdate] = {}
        if self.corrector is not None and not self.corrector.start_only:
            rows, at = all_weights(form, process, t, s, [s, *nodes], self.corrector.variant)
            corrected = {i: LinearUpdate(form, *rows[at + i - first], 1, with_end) for i in regular}
        return [
            StepUpdates((), found[i], corrected.get(i)) if i in found else self.updates(process, points, i, warm_up)
            for i in steps
        ]

    def _is_regular(self, form: ExponentialForm, points: Sequence[Scales], i: int) -> bool:
        """Whether the step has all its evaluations and its usual form."""
        last = i + 1 - self.order  # the oldest evaluation
        if self.start_steps_back or last < 0 or not points[last].floats.alpha or not points[i + 1].floats.sigma:
            return False
        if self.order < 3 or self.max_step_ratio == math.inf:
            return True
        return _step_ratio(form, points[i + 1], (points[i], points[i - 1])) <= self.max_step_ratio

    def _correction(
        self, process: Process, t: Scales, s: Scales, nodes: list[Scales], variant: Variant
    ) -> LinearUpdate:
        """The step from t to s again, once F is known at s as well: evaluation 0 is that at s."""
        known = (s, *nodes)
        form = form_at(self.prediction, self.variable, t, s, known)
        assert form is not None, "corrected steps end at sigma > 0"
        gain, w = weights(form, process, t, s, known, variant)
        return LinearUpdate(form, gain, w, 1, tuple(range(len(known))))


def _step_ratio(form: ExponentialForm | None, s: Scales, nodes: Sequence[Scales]) -> float:
    """The step to s over the one before it, in the polynomial's variable; 0 where either is infinite."""
    if form is None:
        return 0.0
    end, start, before = form.place(s), form.place(nodes[0]), form.place(nodes[1])
    return (end - start) / (start - before)


@dataclass(frozen=True)
class Extrapolate(HistoryRule):
    """A polynomial through the last evaluations, integrated exactly or as a published method approximates it.

    Args:
        prediction: The network's output that is extrapolated; `ode_variables` lists the changes of variables.
        order: Evaluations extrapolated, 1 to 4, or as many as there are.
        variable: What the polynomial is taken in.
        corrector: Takes the step again with the evaluation at its end (order + 1 evaluations); None: no correction,
            but for what `warm_up` does at the start of a run.
        start_steps_back: 1 or 2 start from the state one or two steps back, as the last part of a published single
            step does; 2 with order 2 extrapolates from the newest evaluation and that at its start.
        max_step_ratio: A step longer than this times the one before it, in the polynomial's variable, extrapolates
            over two evaluations at most: higher polynomials go astray there. Positive.
        variant: What stands in place of the exact integral: see `exponential_weights.weights`.
        difference_weights: Factors on the polynomial's divided differences, from the first on, at most three; 1
            where none is given. `SolverSearch` fits them. Whatever they are, the method is of order 1 at least.

    Raises:
        ValueError: An option out of range.
    """

    registry_name = "extrapolate"

    _: KW_ONLY
    variant: Literal["exact", "midpoint", "bh1", "taylor"] = "exact"
    difference_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("rule", variant=(self.variant, Literal["exact", "midpoint", "bh1", "taylor"]))
        object.__setattr__(self, "difference_weights", tuple(self.difference_weights))
        if len(self.difference_weights) > 3 or not all(map(math.isfinite, self.difference_weights)):
            raise ValueError(
                f"rule: difference_weights must be at most three finite factors, got {self.difference_weights!r}"
            )

    @property
    def own_order(self) -> int:
        used = self.difference_weights[: self.order - 1]
        order = next((i for i, factor in enumerate(used, start=1) if factor != 1), self.order)
        return min(order, 2) if self.variant == "taylor" else order

    def weights(
        self, form: ExponentialForm, process: Process, t: Scales, s: Scales, nodes: Sequence[Scales]
    ) -> tuple[float, list[float]]:
        return weights(form, process, t, s, nodes, self.variant, self.difference_weights)

    def all_weights(
        self, form: ExponentialForm, process: Process, t: Scales, s: Scales, nodes: Sequence[Scales]
    ) -> tuple[Sequence[tuple[float, list[float]]], int]:
        return all_weights(form, process, t, s, nodes, self.variant, self.difference_weights)


@dataclass(frozen=True)
class Pseudo(HistoryRule):
    """Adams-Bashforth's weights for equal steps, as fractions of the step's whole integral. Liu et al. 2022 (PNDM).

    Of order 2 at most, as the weights do not depend on the lengths of the steps.

    Args:
        prediction: The network's output that is extrapolated; `ode_variables` lists the changes of variables.
        order: Evaluations extrapolated, 1 to 4, or as many as there are.
        variable: What the polynomial is taken in.
        corrector: Takes the step again with the evaluation at its end; None: no correction.
        start_steps_back: 1 or 2 start from the state one or two steps back.
        max_step_ratio: A step longer than this times the one before it extrapolates over two evaluations at most.
            Positive.

    Raises:
        ValueError: An option out of range.
    """

    registry_name = "pseudo"

    @property
    def own_order(self) -> int:
        return min(self.order, 2)

    def weights(
        self, form: ExponentialForm, process: Process, t: Scales, s: Scales, nodes: Sequence[Scales]
    ) -> tuple[float, list[float]]:
        return weights(form, process, t, s, nodes, "pseudo")

    def all_weights(
        self, form: ExponentialForm, process: Process, t: Scales, s: Scales, nodes: Sequence[Scales]
    ) -> tuple[Sequence[tuple[float, list[float]]], int]:
        return all_weights(form, process, t, s, nodes, "pseudo")


def lower_at_the_end(rules: Sequence[Rule], tail: bool, to: int = 1) -> list[Rule]:
    """Rules whose last ones have the orders ..., 3, 2, 1, for stability. Lu et al. 2022 (DPM-Solver++).

    Args:
        rules: One a step.
        tail: Whether a posterior mean follows, which is itself a last step, of order 1.
        to: The order of the last rule.

    Returns:
        As many rules; those without an order stay as they are.
    """
    least = [len(rules) - i + to - 1 + tail for i in range(len(rules))]
    return [
        replace(rule, order=min(rule.order, order)) if isinstance(rule, HistoryRule) else rule
        for rule, order in zip(rules, least, strict=True)
    ]
