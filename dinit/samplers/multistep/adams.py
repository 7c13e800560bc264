"""Adams-Bashforth methods on the probability-flow ODE, plain and exponential, in every reading of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.multistep.exponential_weights import Prediction, check_order, choice
from dinit.samplers.multistep.rules import Extrapolate, WarmUp
from dinit.samplers.multistep.unified import MultistepSampler, RuleSchedule


@SAMPLERS.register("ab")
@dataclass(frozen=True)
class AdamsBashforth(MultistepSampler):
    """Plain Adams-Bashforth: the prediction extrapolated in its own variable. Bashforth & Adams 1883.

    prediction: 'path-velocity' integrates dx/dt in t; 'velocity' that of the straight path to which any path can be
    scaled, which on the linear one is the same; 'eps' in sigma / alpha; 'x0' in alpha / sigma; 'v' in the angle.
    order: evaluations extrapolated, 1 to 4. warm_up: see `WarmUp`; 'lower-order' is the textbook's.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    order: int = 3
    prediction: Prediction = "path-velocity"
    warm_up: WarmUp = "corrected"

    def __post_init__(self) -> None:
        check_order("ab", self.order)
        choice("ab", prediction=(self.prediction, Prediction), warm_up=(self.warm_up, WarmUp))

    def claims(self) -> Claims:
        return Claims(self.rule.claimed_order(self.warm_up))

    @property
    def rule(self) -> Extrapolate:
        """What every step follows."""
        return Extrapolate(self.prediction, self.order, variable="own")

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        return RuleSchedule([self.rule] * steps, self.warm_up)


@SAMPLERS.register("eab", special_case_of="dpmpp-3m")
@dataclass(frozen=True)
class ExponentialAB(MultistepSampler):
    """Exponential Adams-Bashforth: exact in the linear part, the prediction extrapolated in half the log-SNR.

    Lu et al. 2022 (DPM-Solver: 'eps'; DPM-Solver++: 'x0') with exact integrals, Zhang & Chen 2023 (DEIS). 'v' turns
    the state by the angle between signal and noise; 'velocity' moves it on the straight path.
    order: evaluations extrapolated, 1 to 4. warm_up: see `WarmUp`. max_step_ratio: see `Extrapolate`.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order", "reach": "max_step_ratio"}

    order: int = 3
    prediction: Literal["x0", "eps", "v", "velocity"] = "x0"
    warm_up: WarmUp = "corrected"
    max_step_ratio: float = 2.0

    def __post_init__(self) -> None:
        check_order("eab", self.order)
        choice(
            "eab",
            prediction=(self.prediction, Literal["x0", "eps", "v", "velocity"]),
            warm_up=(self.warm_up, WarmUp),
        )

    def claims(self) -> Claims:
        return Claims(self.rule.claimed_order(self.warm_up))

    @property
    def rule(self) -> Extrapolate:
        """What every step follows."""
        return Extrapolate(self.prediction, self.order, max_step_ratio=self.max_step_ratio)

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        return RuleSchedule([self.rule] * steps, self.warm_up)
