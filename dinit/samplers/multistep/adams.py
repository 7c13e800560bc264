"""Adams-Bashforth methods on the probability-flow ODE, plain and exponential, in any prediction of the network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dinit.diffusion import Process
from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import multistep_grid, own_last_step, spans_decades
from dinit.samplers.multistep.exponential_weights import Prediction, check_order, choice
from dinit.samplers.multistep.rules import Extrapolate, WarmUp
from dinit.samplers.multistep.unified import MultistepSampler, RuleSchedule
from dinit.samplers.points import End


@SAMPLERS.register("ab")
@dataclass(frozen=True)
class AdamsBashforth(MultistepSampler):
    r"""Plain Adams-Bashforth: the last slopes extrapolated in their own variable. Bashforth & Adams 1883.

    Formula: $y_s = y_t + \int_{u_t}^{u_s} P(u)\,du,\quad P \text{ the polynomial through the last slopes } dy/du$

    y = x / rho is the rescaled state and u the variable in which the prediction is its slope, dy/du; the weights
    are those of steps of unequal length. `prediction` chooses rho and u:

        'path-velocity'   rho = 1                u = t
        'velocity'        rho = alpha + sigma    u = sigma / (alpha + sigma), the straight path
        'eps'             rho = alpha            u = sigma / alpha
        'x0'              rho = sigma            u = alpha / sigma
        'v'               rho = |(alpha, sigma)| u = atan(sigma / alpha), the angle

    Args:
        order: Evaluations extrapolated, 1 to 4.
        prediction: The network's output that is extrapolated.
        warm_up: How the first steps, which lack evaluations, are taken: 'corrected' (again with the evaluation at
            their end), 'lower-order' (the textbook's) or 'single-step'; see `rules.WarmUp`.

    Raises:
        ValueError: An option out of its range.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    order: int = 3
    prediction: Prediction = "path-velocity"
    warm_up: WarmUp = "corrected"

    def __post_init__(self) -> None:
        check_order("ab", self.order)
        choice("ab", prediction=(self.prediction, Prediction), warm_up=(self.warm_up, WarmUp))

    def grid_for(self, process: Process) -> TimeGrid:
        return multistep_grid(process, 0.92)

    def end_for(self, process: Process) -> End:
        return own_last_step(process) if spans_decades(process) else "posterior-mean"

    def claims(self) -> Claims:
        return Claims(self.rule.claimed_order(self.warm_up))

    @property
    def rule(self) -> Extrapolate:
        """The rule of every step."""
        return Extrapolate(self.prediction, self.order, variable="own")

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        return RuleSchedule([self.rule] * steps, self.warm_up)


@SAMPLERS.register("eab", special_case_of="dpmpp-3m")
@dataclass(frozen=True)
class ExponentialAB(MultistepSampler):
    r"""Exponential Adams-Bashforth: exact in the linear part, the prediction extrapolated in half the log-SNR.

    Formula: $x_s = \frac{\rho_s}{\rho_t} x_t + \rho_s \int_{\lambda_t}^{\lambda_s}
        P(\lambda)\,\frac{du}{d\lambda}\, d\lambda,\quad P \text{ the polynomial through the last predictions},\
        \lambda = \log(\alpha / \sigma)$

    rho and u belong to the prediction as in `AdamsBashforth`: sigma and e^lambda for 'x0', which makes it
    DPM-Solver++ (Lu et al. 2022, arXiv:2211.01095) with exact integrals, alpha and e^-lambda for 'eps', DPM-Solver
    (Lu et al. 2022, arXiv:2206.00927) and DEIS (Zhang & Chen 2023, arXiv:2204.13902). 'v' turns the state by the
    angle between signal and noise; 'velocity' moves it along the straight path.

    Args:
        order: Evaluations extrapolated, 1 to 4.
        prediction: The network's output that is extrapolated.
        warm_up: How the first steps, which lack evaluations, are taken: 'corrected' (again with the evaluation at
            their end), 'lower-order' (the published codes') or 'single-step'; see `rules.WarmUp`.
        max_step_ratio: A step longer than this times the one before it, in half the log-SNR, extrapolates over two
            evaluations at most, as higher polynomials go astray there. Positive.

    Raises:
        ValueError: An option out of its range.
    """

    unlimited_options: ClassVar = ("max_step_ratio",)

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
        """The rule of every step."""
        return Extrapolate(self.prediction, self.order, max_step_ratio=self.max_step_ratio)

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        return RuleSchedule([self.rule] * steps, self.warm_up)
