"""UniPC: predictor and corrector from the same evaluations. Zhao et al. 2023."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.multistep.exponential_weights import check_order, choice
from dinit.samplers.multistep.unified import Planned, Rule, WarmUp, lower_at_the_end, rule_order


@SAMPLERS.register("unipc")
@dataclass(frozen=True)
class UniPC(Planned):
    """UniP-p with UniC-p: order p + 1 for one evaluation a step. Zhao et al. 2023.

    order: p, evaluations extrapolated, 1 to 4. prediction: 'x0' or 'eps'. b: their function B(h), which enters
    only where their small linear system is replaced by 1/2 (the predictor of p = 2 and the corrector of p = 1):
    'bh1' is h, 'bh2' exp(h) - 1; 'exact' solves the system there too. uncorrected: steps, counted from 0, without
    the corrector (diffusers' disable_corrector). lower_order_final: the last steps with orders ..., 2, 1, as in the
    published code.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    order: int = 2
    prediction: Literal["x0", "eps"] = "x0"
    b: Literal["bh1", "bh2", "exact"] = "bh2"
    uncorrected: tuple[int, ...] = ()
    lower_order_final: bool = False
    warm_up: WarmUp = "corrected"

    def __post_init__(self) -> None:
        check_order("unipc", self.order)
        choice(
            "unipc",
            prediction=(self.prediction, Literal["x0", "eps"]),
            b=(self.b, Literal["bh1", "bh2", "exact"]),
            warm_up=(self.warm_up, WarmUp),
        )

    @property
    def warm(self) -> WarmUp:
        return self.warm_up

    def claims(self) -> Claims:
        return Claims(rule_order(self.rule(), self.warm_up))

    def rule(self, corrector: bool = True) -> Rule:
        """What a step follows."""
        variant = {"bh1": "bh1", "bh2": "midpoint", "exact": "exact"}[self.b]
        return Rule(self.prediction, self.order, corrector, "log-snr", variant, variant)  # type: ignore[arg-type]

    def rules(self, steps: int, tail: bool) -> list[Rule]:
        rules = [self.rule(i not in self.uncorrected) for i in range(steps)]
        return lower_at_the_end(rules, tail) if self.lower_order_final else rules
