"""Rules of exponential and multistep solvers: how one step is taken, and its coefficients.

Liu et al. 2023, "A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models" (USF),
arXiv:2312.07243. A rule chooses the prediction (eps, x0, v, ...), the variable in which it is extrapolated, the
number of past evaluations, and whether the evaluation at the step's end corrects the step at no cost (UniC, Zhao
et al. 2023). Rules of one run may differ; unified.py makes samplers of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, replace
from typing import Any, ClassVar, Literal

from dinit.diffusion import Process, Scales
from dinit.registry import suggest
from dinit.samplers.multistep.exponential_weights import (
    ExponentialForm,
    Prediction,
    Variable,
    Variant,
    check_order,
    choice,
    form_at,
    weights,
)
from dinit.samplers.multistep.linear_update import LinearUpdate, Stages, StepUpdates, ddim_update

WarmUp = Literal["lower-order", "corrected", "single-step"]
"""How the first steps of a run, which lack evaluations, are taken.

'lower-order': with the evaluations that there are; the run then has order 2 at most. 'corrected': each of them is
then taken again with the evaluation at its end, at no cost; order 3 at most. 'single-step': as 'corrected', but the
first step is one of three evaluations (Lu et al. 2022, DPM-Solver-3); order 4 at most.
"""


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
FEW = 12  # times of a run, for which the weights of all steps at once cost more than one by one


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
            stages = (*stages, (at, _from_two(form, process, at, known, "exact", len(points) > FEW)))
            known.append(at)
        return StepUpdates(stages, _from_two(form, process, s, known, self.variant, len(points) > FEW))


def _from_two(
    form: ExponentialForm, process: Process, s: Scales, known: list[Scales], variant: Variant, repeated: bool
) -> LinearUpdate:
    """The update to s from the first of the known evaluations, t, with that evaluation and the last one."""
    t, count = known[0], len(known)
    nodes, taken = ([known[-1], t], (0, count - 1)) if count > 1 else ([t], (0,))
    return LinearUpdate(form, *weights(form, process, t, s, nodes, variant, repeated=repeated), 0, taken)


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
        self, form: ExponentialForm, process: Process, t: Scales, s: Scales, nodes: Sequence[Scales], repeated: bool
    ) -> tuple[float, list[float]]:
        """The weight of the state at t and those of F at the nodes, the newest first; see `weights`."""

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
        repeated = not starting and not longer and len(points) > FEW
        if longer:
            nodes, taken = nodes[:2], taken[:2]
        if longer or back:
            form = form_at(self.prediction, self.variable, start, s, nodes)
        if form is None:
            advance = ddim_update(start, s, back)
        else:
            advance = LinearUpdate(form, *self.weights(form, process, start, s, nodes, repeated), back, taken)
        corrector = self.corrector or _AT_START
        wanted = (starting and warm_up != "lower-order") or not corrector.start_only
        if not wanted or s.floats.sigma == 0:
            return StepUpdates((), advance)
        return StepUpdates((), advance, self._correction(process, t, s, nodes, corrector.variant, repeated))

    def _correction(
        self, process: Process, t: Scales, s: Scales, nodes: list[Scales], variant: Variant, repeated: bool
    ) -> LinearUpdate:
        """The step from t to s again, once F is known at s as well: evaluation 0 is that at s."""
        known = (s, *nodes)
        form = form_at(self.prediction, self.variable, t, s, known)
        assert form is not None, "corrected steps end at sigma > 0"
        gain, w = weights(form, process, t, s, known, variant, repeated=repeated)
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
        self, form: ExponentialForm, process: Process, t: Scales, s: Scales, nodes: Sequence[Scales], repeated: bool
    ) -> tuple[float, list[float]]:
        return weights(form, process, t, s, nodes, self.variant, self.difference_weights, repeated)


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
        self, form: ExponentialForm, process: Process, t: Scales, s: Scales, nodes: Sequence[Scales], repeated: bool
    ) -> tuple[float, list[float]]:
        return weights(form, process, t, s, nodes, "pseudo", repeated=repeated)


RULES: dict[str, type[Rule]] = {rule.registry_name: rule for rule in (Extrapolate, SingleStep, Pseudo)}


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


def rule_from_config(config: Mapping[str, Any]) -> Rule:
    """A rule from a mapping of its fields and its 'name': 'extrapolate', 'single-step' or 'pseudo'.

    A mapping without a name has the flat fields of files written before rules had types: prediction, order,
    corrector, variable, variant, corrector_variant, span, stages, reach, differences.

    Args:
        config: The mapping, as `Rule.to_config` writes it.

    Raises:
        ValueError: An unknown name or field, or a value out of its range.
    """
    given = dict(config) if "name" in config else _from_flat(dict(config))
    name = given.pop("name")
    if name not in RULES:
        raise ValueError(f"unknown rule {name!r}{suggest(str(name), list(RULES))}")
    if given.get("max_step_ratio", 0) in (None, "inf"):  # JSON has no infinity
        given["max_step_ratio"] = math.inf
    if isinstance(corrector := given.get("corrector"), Mapping):
        given["corrector"] = Corrector(**{key: value for key, value in corrector.items() if key != "name"})
    return _made(RULES[name], given)


def _made(kind: type[Rule], given: Mapping[str, Any]) -> Rule:
    try:
        return kind(**given)
    except TypeError as error:  # a field that it does not have, or a value of a wrong type
        raise ValueError(f"rule {kind.registry_name!r} cannot be made of {dict(given)!r}: {error}") from error


def _from_flat(old: dict[str, Any]) -> dict[str, Any]:
    known = (
        "prediction", "order", "corrector", "variable", "variant", "corrector_variant", "span", "stages", "reach",
        "differences",
    )  # fmt: skip
    if unknown := [key for key in old if key not in known]:
        raise ValueError(
            f"a rule without a 'name' has no field {unknown[0]!r}{suggest(unknown[0], list(known))}; rules "
            f"of today have a name: {', '.join(RULES)}"
        )
    of_all = {key: old[key] for key in ("prediction", "variable") if key in old}
    variant = old.get("variant", "exact")
    if old.get("stages"):
        return {"name": "single-step", "prediction": "x0", "stages": old["stages"], "variant": variant, **of_all}
    corrector = Corrector(old.get("corrector_variant", "exact"), start_only=not old.get("corrector", True))
    rest = {
        "order": old.get("order", 3),
        "corrector": None if corrector == Corrector(start_only=True) else corrector,
        "start_steps_back": old.get("span", 1) - 1,
        "max_step_ratio": old.get("reach", math.inf) or math.inf,  # None in files of `SolverSearch`
        **of_all,
    }
    if variant == "pseudo":
        return {"name": "pseudo", **rest}
    return {"name": "extrapolate", "variant": variant, "difference_weights": old.get("differences", ()), **rest}
