"""DEIS: the noise extrapolated in time, integrated exactly. Zhang & Chen 2023."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.multistep.exponential_weights import Variable, check_order, choice
from dinit.samplers.multistep.rules import Extrapolate, Rule, WarmUp, lower_at_the_end
from dinit.samplers.multistep.unified import MultistepSampler, RuleSchedule


@SAMPLERS.register("deis")
@dataclass(frozen=True)
class DEIS(MultistepSampler):
    """DEIS-AB: a polynomial through the last evaluations of eps, in t (tAB), sigma / alpha or half the log-SNR.

    Zhang & Chen 2023; the third is what diffusers' DEIS does. order: evaluations extrapolated, 1 (DDIM) to 4; the
    paper's tABn has n + 1. warm_up: see `WarmUp`; 'lower-order' is the paper's. lower_order_final: the last
    steps with orders ..., 2, 1 in runs of fewer than 15 steps, as in diffusers.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    order: int = 3
    variable: Literal["t", "rho", "log-rho"] = "t"
    warm_up: WarmUp = "corrected"
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        check_order("deis", self.order)
        choice("deis", variable=(self.variable, Literal["t", "rho", "log-rho"]), warm_up=(self.warm_up, WarmUp))

    def claims(self) -> Claims:
        return Claims(self.rule.claimed_order(self.warm_up))

    @property
    def rule(self) -> Extrapolate:
        """What every step follows."""
        variables: dict[str, Variable] = {"t": "t", "rho": "own", "log-rho": "log-snr"}
        return Extrapolate("eps", self.order, variable=variables[self.variable])

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        rules: list[Rule] = [self.rule] * steps
        if self.lower_order_final and steps + tail < 15:
            rules = lower_at_the_end(rules, tail)
        return RuleSchedule(rules, self.warm_up)
