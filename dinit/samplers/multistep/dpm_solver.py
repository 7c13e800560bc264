"""DPM-Solver in single steps, and the single- and multistep DPM-Solver++ besides 2M. Lu et al. 2022."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.multistep.exponential_weights import choice
from dinit.samplers.multistep.rules import Extrapolate, Rule, SingleStep, WarmUp, lower_at_the_end
from dinit.samplers.multistep.unified import MultistepSampler, RuleSchedule


@dataclass(frozen=True)
class OneRule(MultistepSampler):
    """A solver whose steps all follow one rule that needs no history. Not registered itself."""

    rule: ClassVar[Rule]

    def claims(self) -> Claims:
        return Claims(self.rule.claimed_order("corrected"), nfe_per_step=1 + self.rule.inner_evaluations)

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        return RuleSchedule([self.rule] * steps)


@SAMPLERS.register("dpm-solver-1", special_case_of="ddim")
@dataclass(frozen=True)
class DPMSolver1(OneRule):
    """DPM-Solver-1, which is DDIM. Lu et al. 2022 (DPM-Solver)."""

    rule = Extrapolate("eps", 1)


@SAMPLERS.register("dpm-solver-2")
@dataclass(frozen=True)
class DPMSolver2(OneRule):
    """DPM-Solver-2: eps at the middle of the step in log-SNR; 2 NFE a step. Lu et al. 2022, Algorithm 1."""

    rule = SingleStep("eps", (0.5,), variant="midpoint")


@SAMPLERS.register("dpm-solver-3")
@dataclass(frozen=True)
class DPMSolver3(OneRule):
    """DPM-Solver-3: eps at a third and two thirds of the step; 3 NFE a step. Lu et al. 2022, Algorithm 2."""

    rule = SingleStep("eps", (1 / 3, 2 / 3))


@SAMPLERS.register("dpmpp-2s", aliases=("dpm-solver++(2s)",))
@dataclass(frozen=True)
class DPMpp2S(OneRule):
    """DPM-Solver++(2S): the posterior mean at the middle of the step; 2 NFE a step. Lu et al. 2022, Algorithm 1."""

    rule = SingleStep("x0", (0.5,), variant="midpoint")


@SAMPLERS.register("dpmpp-3m", aliases=("dpm-solver++(3m)",))
@dataclass(frozen=True)
class DPMpp3M(MultistepSampler):
    """DPM-Solver++(3M): the posterior mean extrapolated over three evaluations. Lu et al. 2022 (DPM-Solver++).

    variant: 'exact' integrates the parabola, for order 3; 'published' gives its quadratic term half the weight, as
    the paper's code and those after it do, for order 2. warm_up: see `WarmUp`; theirs is 'lower-order'.
    lower_order_final: the last steps with orders 2 and 1 in runs of fewer than 15 steps, as theirs. max_step_ratio:
    see `Extrapolate`; theirs is infinite.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"reach": "max_step_ratio"}

    variant: Literal["exact", "published"] = "exact"
    warm_up: WarmUp = "corrected"
    lower_order_final: bool = False
    max_step_ratio: float = 2.0

    def __post_init__(self) -> None:
        choice("dpmpp-3m", variant=(self.variant, Literal["exact", "published"]), warm_up=(self.warm_up, WarmUp))

    def claims(self) -> Claims:
        return Claims(self.rule.claimed_order(self.warm_up))

    @property
    def rule(self) -> Extrapolate:
        """What every step follows."""
        variant = "exact" if self.variant == "exact" else "taylor"
        return Extrapolate("x0", 3, variant=variant, max_step_ratio=self.max_step_ratio)

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        rules: list[Rule] = [self.rule] * steps
        if self.lower_order_final and steps + tail < 15:
            rules = lower_at_the_end(rules, tail)
        return RuleSchedule(rules, self.warm_up)
