"""Adams-Bashforth methods on the probability-flow ODE, plain and exponential, in every reading of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.multistep.exponential_weights import Prediction, check_order, choice
from dinit.samplers.multistep.unified import Planned, Rule, WarmUp, rule_order


@SAMPLERS.register("ab")
@dataclass(frozen=True)
class AdamsBashforth(Planned):
    """Plain Adams-Bashforth: the prediction extrapolated in its own variable. Bashforth & Adams 1883.

    prediction: 'path-velocity' integrates dx/dt in t; 'velocity' that of the straight path to which any path can be
    scaled, which on the linear one is the same; 'eps' in sigma / alpha; 'x0' in alpha / sigma; 'v' in the angle.
    order: evaluations extrapolated, 1 to 4. warm_up: see `Planned.warm`; 'lower-order' is the textbook's.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    order: int = 3
    prediction: Prediction = "path-velocity"
    warm_up: WarmUp = "corrected"

    def __post_init__(self) -> None:
        check_order("ab", self.order)
        choice("ab", prediction=(self.prediction, Prediction), warm_up=(self.warm_up, WarmUp))

    @property
    def warm(self) -> WarmUp:
        return self.warm_up

    def claims(self) -> Claims:
        return Claims(rule_order(self.rule, self.warm_up))

    @property
    def rule(self) -> Rule:
        """What every step follows."""
        return Rule(self.prediction, self.order, False, "own")

    def rules(self, steps: int, tail: bool) -> list[Rule]:
        return [self.rule] * steps


@SAMPLERS.register("eab", special_case_of="dpmpp-3m")
@dataclass(frozen=True)
class ExponentialAB(Planned):
    """Exponential Adams-Bashforth: exact in the linear part, the prediction extrapolated in half the log-SNR.

    Lu et al. 2022 (DPM-Solver: 'eps'; DPM-Solver++: 'x0') with exact integrals, Zhang & Chen 2023 (DEIS). 'v' turns
    the state by the angle between signal and noise; 'velocity' moves it on the straight path.
    order: evaluations extrapolated, 1 to 4. warm_up: see `Planned.warm`. reach: see `Rule`.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    order: int = 3
    prediction: Literal["x0", "eps", "v", "velocity"] = "x0"
    warm_up: WarmUp = "corrected"
    reach: float = 2.0

    def __post_init__(self) -> None:
        check_order("eab", self.order)
        choice(
            "eab",
            prediction=(self.prediction, Literal["x0", "eps", "v", "velocity"]),
            warm_up=(self.warm_up, WarmUp),
        )

    @property
    def warm(self) -> WarmUp:
        return self.warm_up

    def claims(self) -> Claims:
        return Claims(rule_order(self.rule, self.warm_up))

    @property
    def rule(self) -> Rule:
        """What every step follows."""
        return Rule(self.prediction, self.order, False, "log-snr", reach=self.reach)

    def rules(self, steps: int, tail: bool) -> list[Rule]:
        return [self.rule] * steps
