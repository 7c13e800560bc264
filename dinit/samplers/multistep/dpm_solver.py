"""DPM-Solver in single steps, DPM-Solver++(2S) and DPM-Solver++(3M). Lu et al. 2022."""

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
    """Solver whose steps all follow one rule that needs no history; the base of those below, not registered."""

    rule: ClassVar[Rule]

    def claims(self) -> Claims:
        return Claims(self.rule.claimed_order("corrected"), nfe_per_step=1 + self.rule.inner_evaluations)

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        return RuleSchedule([self.rule] * steps)


@SAMPLERS.register("dpm-solver-1", special_case_of="ddim")
@dataclass(frozen=True)
class DPMSolver1(OneRule):
    r"""DPM-Solver-1, which is DDIM. Lu et al. 2022 (DPM-Solver).

    Formula: $x_s = \frac{\alpha_s}{\alpha_t} x_t - \sigma_s (e^{h} - 1)\,\varepsilon,\quad h = \lambda_s -
        \lambda_t$

    lambda = log(alpha / sigma) is half the log-SNR. Source: arXiv:2206.00927.
    """

    rule = Extrapolate("eps", 1)


@SAMPLERS.register("dpm-solver-2")
@dataclass(frozen=True)
class DPMSolver2(OneRule):
    r"""DPM-Solver-2: eps at the middle of the step, 2 NFE a step. Lu et al. 2022 (DPM-Solver), Algorithm 1.

    Formula: $x_s = \frac{\alpha_s}{\alpha_t} x_t - \sigma_s (e^{h} - 1)\,\varepsilon(x_m, \lambda_m),\quad x_m =
        \frac{\alpha_m}{\alpha_t} x_t - \sigma_m (e^{h/2} - 1)\,\varepsilon(x_t, \lambda_t),\quad \lambda_m =
        \lambda_t + \tfrac{h}{2}$

    lambda = log(alpha / sigma) is half the log-SNR, h its rise over the step. Source: arXiv:2206.00927.
    """

    rule = SingleStep("eps", (0.5,), variant="midpoint")


@SAMPLERS.register("dpm-solver-3")
@dataclass(frozen=True)
class DPMSolver3(OneRule):
    r"""DPM-Solver-3: eps at 1/3 and 2/3 of the step, 3 NFE a step. Lu et al. 2022 (DPM-Solver), Algorithm 2.

    Formula: $x_s = \frac{\alpha_s}{\alpha_t} x_t - \sigma_s (e^h - 1)\,\varepsilon_0 - \tfrac{3}{2}\,\sigma_s
        \left(\tfrac{e^h - 1}{h} - 1\right)\left(\varepsilon_{2/3} - \varepsilon_0\right),\quad x_{2/3} =
        \frac{\alpha_{2/3}}{\alpha_t} x_t - \sigma_{2/3} (e^{2h/3} - 1)\,\varepsilon_0 - 2\,\sigma_{2/3}
        \left(\tfrac{e^{2h/3} - 1}{2h/3} - 1\right)\left(\varepsilon_{1/3} - \varepsilon_0\right)$

    eps_0, eps_1/3 and eps_2/3 are the noise at x_t, at DPM-Solver-1's state a third of the step further in lambda
    = log(alpha / sigma), and at x_2/3; h is the step's rise of lambda. Source: arXiv:2206.00927.
    """

    rule = SingleStep("eps", (1 / 3, 2 / 3))


@SAMPLERS.register("dpmpp-2s", aliases=("dpm-solver++(2s)",))
@dataclass(frozen=True)
class DPMpp2S(OneRule):
    r"""DPM-Solver++(2S): x0 at the middle of the step, 2 NFE a step. Lu et al. 2022 (DPM-Solver++), Algorithm 1.

    Formula: $x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s (1 - e^{-h})\,x_0(x_m, \lambda_m),\quad x_m =
        \frac{\sigma_m}{\sigma_t} x_t + \alpha_m (1 - e^{-h/2})\,x_0(x_t, \lambda_t),\quad \lambda_m = \lambda_t +
        \tfrac{h}{2}$

    lambda = log(alpha / sigma) is half the log-SNR, h its rise over the step. Source: arXiv:2211.01095.
    """

    rule = SingleStep("x0", (0.5,), variant="midpoint")


@SAMPLERS.register("dpmpp-3m", aliases=("dpm-solver++(3m)",))
@dataclass(frozen=True)
class DPMpp3M(MultistepSampler):
    r"""DPM-Solver++(3M): the posterior mean extrapolated over three evaluations. Lu et al. 2022 (DPM-Solver++).

    Formula: $x_s = \frac{\sigma_s}{\sigma_t} x_t + \sigma_s \int_{\lambda_t}^{\lambda_s} e^{\lambda}
        P(\lambda)\,d\lambda, \quad P \text{ the parabola through the last three } x_0$

    lambda = log(alpha / sigma) is half the log-SNR. Source: arXiv:2211.01095.

    Args:
        variant: 'exact' integrates the parabola, for order 3; 'published' gives its quadratic term half the
            weight, as the paper's code and later ones do, for order 2.
        warm_up: How the first steps, which lack evaluations, are taken: 'corrected' (again with the evaluation at
            their end), 'lower-order' (the published code's) or 'single-step'; see `rules.WarmUp`.
        lower_order_final: Whether the last steps have the orders 2 and 1 in runs of fewer than 15 steps, as in the
            published code.
        max_step_ratio: A step longer than this times the one before it, in half the log-SNR, extrapolates over two
            evaluations, as a parabola goes astray there. Positive; infinite in the published code.

    Raises:
        ValueError: An option out of its range.
    """

    unlimited_options: ClassVar = ("max_step_ratio",)

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
        """The rule of every step."""
        variant = "exact" if self.variant == "exact" else "taylor"
        return Extrapolate("x0", 3, variant=variant, max_step_ratio=self.max_step_ratio)

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        rules: list[Rule] = [self.rule] * steps
        if self.lower_order_final and steps + tail < 15:
            rules = lower_at_the_end(rules, tail)
        return RuleSchedule(rules, self.warm_up)
