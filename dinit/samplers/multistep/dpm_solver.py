"""DPM-Solver in single steps, and the single- and multistep DPM-Solver++ besides 2M. Lu et al. 2022."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.multistep.exponential_weights import choice
from dinit.samplers.multistep.unified import Planned, Rule, WarmUp, lower_at_the_end, rule_order


@dataclass(frozen=True)
class SingleStep(Planned):
    """A solver whose steps share nothing: all follow one rule. Not registered itself."""

    rule: ClassVar[Rule]

    def claims(self) -> Claims:
        return Claims(rule_order(self.rule, "corrected"), nfe_per_step=1 + len(self.rule.stages))

    def rules(self, steps: int, tail: bool) -> list[Rule]:
        return [self.rule] * steps


@SAMPLERS.register("dpm-solver-1", special_case_of="ddim")
@dataclass(frozen=True)
class DPMSolver1(SingleStep):
    """DPM-Solver-1, which is DDIM. Lu et al. 2022 (DPM-Solver)."""

    rule = Rule("eps", 1, False)


@SAMPLERS.register("dpm-solver-2")
@dataclass(frozen=True)
class DPMSolver2(SingleStep):
    """DPM-Solver-2: eps at the middle of the step in log-SNR; 2 NFE a step. Lu et al. 2022, Algorithm 1."""

    rule = Rule("eps", 1, False, variant="midpoint", stages=(0.5,))


@SAMPLERS.register("dpm-solver-3")
@dataclass(frozen=True)
class DPMSolver3(SingleStep):
    """DPM-Solver-3: eps at a third and two thirds of the step; 3 NFE a step. Lu et al. 2022, Algorithm 2."""

    rule = Rule("eps", 1, False, stages=(1 / 3, 2 / 3))


@SAMPLERS.register("dpmpp-2s", aliases=("dpm-solver++(2s)",))
@dataclass(frozen=True)
class DPMpp2S(SingleStep):
    """DPM-Solver++(2S): the posterior mean at the middle of the step; 2 NFE a step. Lu et al. 2022, Algorithm 1."""

    rule = Rule("x0", 1, False, variant="midpoint", stages=(0.5,))


@SAMPLERS.register("dpmpp-3m", aliases=("dpm-solver++(3m)",))
@dataclass(frozen=True)
class DPMpp3M(Planned):
    """DPM-Solver++(3M): the posterior mean extrapolated over three evaluations. Lu et al. 2022 (DPM-Solver++).

    variant: 'exact' integrates the parabola, for order 3; 'published' gives its quadratic term half the weight, as
    the paper's code and those after it do, for order 2. warm_up: see `Planned.warm`; theirs is 'lower-order'.
    lower_order_final: the last steps with orders 2 and 1 in runs of fewer than 15 steps, as theirs. reach: see
    `Rule`; theirs is infinite.
    """

    variant: Literal["exact", "published"] = "exact"
    warm_up: WarmUp = "corrected"
    lower_order_final: bool = False
    reach: float = 2.0

    def __post_init__(self) -> None:
        choice("dpmpp-3m", variant=(self.variant, Literal["exact", "published"]), warm_up=(self.warm_up, WarmUp))

    @property
    def warm(self) -> WarmUp:
        return self.warm_up

    def claims(self) -> Claims:
        return Claims(rule_order(self.rule, self.warm_up))

    @property
    def rule(self) -> Rule:
        """What every step follows."""
        return Rule("x0", 3, False, variant="exact" if self.variant == "exact" else "taylor", reach=self.reach)

    def rules(self, steps: int, tail: bool) -> list[Rule]:
        rules = [self.rule] * steps
        return lower_at_the_end(rules, tail) if self.lower_order_final and steps + tail < 15 else rules
