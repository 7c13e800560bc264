"""UniPC: predictor and corrector from the same evaluations. Zhao et al. 2023."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.multistep.exponential_weights import check_order, choice
from dinit.samplers.multistep.rules import Corrector, Extrapolate, Rule, WarmUp, lower_at_the_end
from dinit.samplers.multistep.unified import MultistepSampler, RuleSchedule

_VARIANTS: dict[str, Literal["bh1", "midpoint", "exact"]] = {"bh1": "bh1", "bh2": "midpoint", "exact": "exact"}


@SAMPLERS.register("unipc")
@dataclass(frozen=True)
class UniPC(MultistepSampler):
    r"""UniPC: UniP-p with UniC-p, order p + 1 for one evaluation a step. Zhao et al. 2023.

    Formula: $x_s = \frac{\rho_s}{\rho_t} x_t + \rho_s \int_{\lambda_t}^{\lambda_s}
        P(\lambda)\,\frac{du}{d\lambda}\, d\lambda;\quad \text{corrected by the same with the evaluation at } s
        \text{ as one more node of } P$

    P is the polynomial in lambda = log(alpha / sigma) through the last p predictions; rho and u are sigma and
    e^lambda for 'x0', alpha and e^-lambda for 'eps'. The network is evaluated at the predicted x_s, as the start
    of the next step; that step then starts from the corrected x_s. Source: arXiv:2302.04867.

    Args:
        order: p, evaluations extrapolated, 1 to 4.
        prediction: The network's output that is extrapolated.
        b: The paper's function B(h). It enters only where its small linear system is replaced by 1/2, in the
            predictor of p = 2 and the corrector of p = 1: 'bh1' is h, 'bh2' is exp(h) - 1; 'exact' solves the
            system there too.
        uncorrected: Steps, counted from 0, without the corrector (diffusers' disable_corrector).
        lower_order_final: Whether the last steps have the orders ..., 2, 1, as in the published code.
        warm_up: How the first steps, which lack evaluations, are taken: 'corrected' (again with the evaluation at
            their end), 'lower-order' (the published code's) or 'single-step'; see `rules.WarmUp`.

    Raises:
        ValueError: An option out of its range.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    order: int = 2
    prediction: Literal["x0", "eps"] = "x0"
    b: Literal["bh1", "bh2", "exact"] = "bh2"
    uncorrected: tuple[int, ...] = ()
    lower_order_final: bool = False
    warm_up: WarmUp = "corrected"

    def __post_init__(self) -> None:
        object.__setattr__(self, "uncorrected", tuple(self.uncorrected))  # a list, out of a JSON file
        check_order("unipc", self.order)
        choice(
            "unipc",
            prediction=(self.prediction, Literal["x0", "eps"]),
            b=(self.b, Literal["bh1", "bh2", "exact"]),
            warm_up=(self.warm_up, WarmUp),
        )

    def claims(self) -> Claims:
        return Claims(self.rule().claimed_order(self.warm_up))

    def rule(self, corrected: bool = True) -> Extrapolate:
        """The rule that a step follows.

        Args:
            corrected: Whether the step is corrected.
        """
        variant = _VARIANTS[self.b]
        corrector = Corrector(variant, start_only=not corrected)
        return Extrapolate(self.prediction, self.order, corrector=corrector, variant=variant)

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        plain, corrected = self.rule(False), self.rule()
        rules: list[Rule] = [plain if i in self.uncorrected else corrected for i in range(steps)]
        return RuleSchedule(lower_at_the_end(rules, tail) if self.lower_order_final else rules, self.warm_up)
