"""One mechanism under every exponential and multistep solver: at each step a free choice of how to take it.

Liu et al. 2023, "A Unified Sampling Framework for Solver Searching of Diffusion Probabilistic Models" (USF). A step
chooses what the network is read as, in what its past is extrapolated, over how many past evaluations, and whether
the fresh evaluation at its end corrects it for nothing (UniC, Zhao et al. 2023). The named solvers are schedules of
such choices. All coefficients of a run are computed before it, in float64; the loop adds tensors up.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal, NamedTuple

from torch import Tensor

from dinit.diffusion import Denoised, Denoiser, Process, Scales
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.multistep.exponential_weights import (
    DDIM_FORM,
    ExponentialForm,
    Prediction,
    Variable,
    Variant,
    check_order,
    choice,
    ddim_weights,
    form_at,
    weights,
)

WarmUp = Literal["lower-order", "corrected", "single-step"]


@dataclass(frozen=True)
class Rule:
    """How one step is taken.

    prediction: what the network is read as (exponential_weights.py lists the forms). order: how many evaluations
    are extrapolated, 1 to 4, or as many as there are. corrector: the evaluation at the step's end, which the next
    step makes anyway, takes part in a second, better step in place of the first (order + 1 evaluations). variable:
    what the polynomial is taken in. variant, corrector_variant: published approximations of its integral.
    span: 2 or 3 starts from the state one or two steps back, as the last part of a published single step does;
    of order 2 and span 3, from the newest evaluation and that at its start. stages: a step without history, its
    inner evaluations at these fractions of it: see `single_step`, which order then follows.
    reach: a step longer than `reach` times the one before it, in the polynomial's variable, extrapolates over two
    evaluations at most: higher polynomials go astray there.
    differences: factors on the extrapolation's divided differences, from the first on, where they are to be other
    than 1: `SolverSearch` fits them. They leave the first order, which the step's own evaluation carries.
    """

    prediction: Prediction = "x0"
    order: int = 3
    corrector: bool = True
    variable: Variable = "log-snr"
    variant: Variant = "exact"
    corrector_variant: Variant = "exact"
    span: int = 1
    stages: tuple[float, ...] = ()
    reach: float = math.inf
    differences: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        choice(
            "rule",
            prediction=(self.prediction, Prediction),
            variable=(self.variable, Variable),
            variant=(self.variant, Variant),
            corrector_variant=(self.corrector_variant, Variant),
        )
        check_order("rule", self.order)
        if self.span not in (1, 2, 3):
            raise ValueError(f"rule: span must be 1, 2 or 3, got {self.span!r}")
        object.__setattr__(self, "stages", tuple(self.stages))
        if len(self.stages) > 2 or not all(0 < fraction <= 1 for fraction in self.stages):
            raise ValueError(f"rule: stages must be at most two fractions in (0, 1], got {self.stages!r}")
        object.__setattr__(self, "differences", tuple(self.differences))
        if len(self.differences) > 3 or not all(math.isfinite(factor) for factor in self.differences):
            raise ValueError(f"rule: differences must be at most three finite factors, got {self.differences!r}")
        if self.differences and (self.stages or self.variant == "pseudo"):
            raise ValueError("rule: differences are those of past evaluations; stages and 'pseudo' have none")


class Sum(NamedTuple):
    """x = gain * state + sum_j weights[j] * F_j, F read in `form` from evaluations, the newest first.

    back: from how many evaluations ago the state is taken. points: which evaluations take part.
    """

    form: ExponentialForm
    gain: float
    weights: list[float]
    back: int
    points: tuple[int, ...]

    def of(self, state: Tensor, past: Sequence[Evaluation]) -> Tensor:
        x = self.gain * state
        for j, w in zip(self.points, self.weights, strict=True):
            x = x + w * self.form.ode.slope(past[j].denoised)
        return x


class Evaluation(NamedTuple):
    """A past evaluation and the (corrected) state that the trajectory went on from there."""

    denoised: Denoised
    state: Tensor


class StepPlan(NamedTuple):
    """correct: applied on arrival at t, or None. stages: inner times and how to reach them. advance: to s."""

    correct: Sum | None
    stages: tuple[tuple[Scales, Sum], ...]
    advance: Sum
    keep: int


class Progress(NamedTuple):
    """The state of a run: what is still to be done, and past evaluations, the newest first."""

    ahead: tuple[StepPlan, ...]
    past: tuple[Evaluation, ...] = ()


@dataclass(frozen=True)
class Planned(Sampler):
    """A solver that is a schedule of rules: subclasses say which rule each step follows."""

    @abstractmethod
    def rules(self, steps: int, tail: bool) -> list[Rule]:
        """One rule for each of a run's steps >= 1. tail: whether a posterior mean follows them."""

    @property
    def warm(self) -> WarmUp:
        """How the first steps, which lack evaluations, are taken.

        'lower-order': with those there are, so that the whole run has order 2 at most. 'corrected': the same with
        the corrector, for nothing, which makes it 3. 'single-step': besides, the first step is one of three
        evaluations (Lu et al. 2022, DPM-Solver-3), which makes it 4.
        """
        return "corrected"

    def init(self, denoiser: Denoiser, points: list[Scales], total: int) -> Progress:
        if len(points) < 2:
            return Progress(())
        return Progress(self.plan(denoiser.process, points, total == len(points)))

    def plan(self, process: Process, points: list[Scales], tail: bool) -> tuple[StepPlan, ...]:
        """All coefficients of a run over the points. tail: as in `rules`."""
        return plan_steps(process, points, self.rules(len(points) - 1, tail), self.warm)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Progress, noise: StepNoise
    ) -> tuple[Tensor, Progress]:
        now, *ahead = state.ahead
        d = denoise(x_t, t)
        past = (Evaluation(d, x_t), *state.past)
        if now.correct is not None:
            past = (Evaluation(d, now.correct.of(past[now.correct.back].state, past)), *state.past)
        inner: tuple[Evaluation, ...] = ()
        for at, reach in now.stages:
            x = reach.of(past[0].state, (*inner, *past))
            inner = (Evaluation(denoise(x, at), x), *inner)
        x_s = now.advance.of(past[now.advance.back].state, (*inner, *past))
        return x_s, Progress(tuple(ahead), past[: now.keep])

    def nfe(self, steps: int) -> int:
        rules = self.rules(steps - 1, True)
        first = 2 * (self.warm == "single-step" and bool(rules) and rules[0].order > 1 and not rules[0].stages)
        return steps + first + sum(len(rule.stages) for rule in rules)


@SAMPLERS.register("unified")
@dataclass(frozen=True)
class Unified(Planned):
    """Any schedule of rules, one a step; the last is repeated for the steps that follow. Liu et al. 2023 (USF).

    schedule: rules, or mappings of a rule's fields. warm_up: see `Planned.warm`.
    """

    schedule: tuple[Rule, ...] = (Rule(reach=2.0),)
    warm_up: WarmUp = "corrected"

    def __post_init__(self) -> None:
        choice("unified", warm_up=(self.warm_up, WarmUp))
        rules = tuple(Rule(**r) if isinstance(r, Mapping) else r for r in self.schedule)
        if not rules or not all(isinstance(r, Rule) for r in rules):
            raise ValueError(f"unified: schedule needs at least one rule, got {self.schedule!r}")
        object.__setattr__(self, "schedule", rules)

    @property
    def warm(self) -> WarmUp:
        return self.warm_up

    def claims(self) -> Claims:
        """The order is the least that any of its steps has and the warm-up allows."""
        return Claims(min(rule_order(rule, self.warm_up) for rule in self.schedule))

    def rules(self, steps: int, tail: bool) -> list[Rule]:
        return [*self.schedule, *[self.schedule[-1]] * steps][:steps]

    def to_config(self) -> dict[str, Any]:
        """A mapping of plain values that `SAMPLERS.create` turns back into this sampler."""
        return {"name": "unified", "schedule": [asdict(rule) for rule in self.schedule], "warm_up": self.warm_up}


def rule_order(rule: Rule, warm_up: WarmUp) -> int:
    """The order of a run that follows one rule throughout."""
    if rule.stages:
        return 3 if rule.stages == (1 / 3, 2 / 3) and rule.variant == "exact" else 2
    order = rule.order
    if rule.differences[: order - 1] != (1.0,) * len(rule.differences[: order - 1]):
        order = 1 + next(i for i, factor in enumerate(rule.differences) if factor != 1)
    if rule.variant in ("taylor", "pseudo"):
        order = min(order, 2)
    if rule.corrector:
        order += 1
    return min(order, {"lower-order": 3 if rule.corrector else 2, "corrected": 3, "single-step": 4}[warm_up])


def lower_at_the_end(rules: list[Rule], tail: bool, to: int = 1) -> list[Rule]:
    """The last rules with orders 1, 2, 3, ... counted from the end, for stability. Lu et al. 2022 (DPM-Solver++).

    tail: a posterior mean follows, which is itself the last step, of order 1.
    """
    count = len(rules)
    return [replace(r, order=min(r.order, count - i + to - 1 + tail)) for i, r in enumerate(rules)]


def plan_steps(process: Process, points: list[Scales], rules: list[Rule], warm_up: WarmUp) -> tuple[StepPlan, ...]:
    """All coefficients of a run over the points, one rule for each of the steps between them."""
    plans, pending = [], None
    keep = max(max(r.order, r.span) for r in rules)
    for i, ((t, s), rule) in enumerate(zip(pairwise(points), rules, strict=True)):
        back = min(rule.span - 1, i)
        taken = (0, 2) if back == 2 and rule.order == 2 else tuple(range(min(rule.order, i + 1)))
        nodes = [points[i - j] for j in taken]  # the newest first
        starting = len(nodes) < rule.order and not rule.stages
        if len(nodes) > 2 and _ratio(rule, s, nodes) > rule.reach:
            nodes, taken = nodes[:2], taken[:2]
        stages: tuple[tuple[Scales, Sum], ...] = ()
        if rule.stages:
            stages, advance = single_step(process, t, s, rule, rule.stages)
        elif i == 0 and starting and warm_up == "single-step":
            stages, advance = single_step(process, t, s, replace(rule, variant="exact"), (1 / 3, 2 / 3))
        else:
            advance = advance_sum(process, points[i - back], s, nodes, rule, back, taken)
        plans.append(StepPlan(pending, stages, advance, keep))
        corrected = rule.corrector or (starting and warm_up != "lower-order")
        pending = None
        if corrected and not stages and s.floats.sigma > 0:  # a single step is better than its correction
            pending = corrector_sum(process, t, s, nodes, rule)
    return tuple(plans)


def _ratio(rule: Rule, s: Scales, nodes: Sequence[Scales]) -> float:
    """The step to s over the one before it, in the polynomial's variable; 0 where either is infinite."""
    form = form_at(rule.prediction, rule.variable, nodes[0], s, nodes)
    if form is None:
        return 0.0
    end, start, before = (form.place(k) for k in (s, *nodes[:2]))
    return (end - start) / (start - before)


def advance_sum(
    process: Process,
    t: Scales,
    s: Scales,
    nodes: Sequence[Scales],
    rule: Rule,
    back: int = 0,
    points: tuple[int, ...] = (0,),
) -> Sum:
    """From the state at t, `back` evaluations ago, to s, with F known at the nodes: the evaluations `points`."""
    form = form_at(rule.prediction, rule.variable, t, s, nodes)
    if form is None:
        return Sum(DDIM_FORM, *ddim_weights(t, s), back, (0,))
    gain, w = weights(form, process, t, s, nodes, rule.variant, rule.differences)
    return Sum(form, gain, w, back, points)


def corrector_sum(process: Process, t: Scales, s: Scales, nodes: Sequence[Scales], rule: Rule) -> Sum:
    """The step from t to s again, once F is known at s as well: evaluation 0 is that at s."""
    form = form_at(rule.prediction, rule.variable, t, s, (s, *nodes))
    assert form is not None, "corrected steps end at sigma > 0"
    gain, w = weights(form, process, t, s, (s, *nodes), rule.corrector_variant)
    return Sum(form, gain, w, 1, tuple(range(len(nodes) + 1)))


def single_step(
    process: Process, t: Scales, s: Scales, rule: Rule, fractions: tuple[float, ...]
) -> tuple[tuple[tuple[Scales, Sum], ...], Sum]:
    """The inner times and coefficients of a step without history, of order 1 + len(fractions) <= 3.

    Each stage and the end use the evaluation at t and the newest one. Lu et al. 2022 (DPM-Solver), Algorithms 1
    and 2 (for eps); order 2 for any fraction, 3 for fractions (1/3, 2/3).
    """
    form = form_at(rule.prediction, rule.variable, t, s, (t,))
    if form is None:  # DDIM's step is all there is at sigma_s = 0
        return (), advance_sum(process, t, s, (t,), rule)
    inner = [form.between(process, t, s, fraction) for fraction in fractions]
    stages, known = [], [t]
    for at in inner:
        stages.append((at, _from_two(form, process, t, at, known, "exact")))
        known.append(at)
    return tuple(stages), _from_two(form, process, t, s, known, rule.variant)


def _from_two(
    form: ExponentialForm, process: Process, t: Scales, s: Scales, known: list[Scales], variant: Variant
) -> Sum:
    """To s from t with the first (t) and the last of the known evaluations."""
    nodes, points = ([known[-1], t], (0, len(known) - 1)) if len(known) > 1 else ([t], (0,))
    gain, w = weights(form, process, t, s, nodes, variant)
    return Sum(form, gain, w, 0, points)
