"""DEIS: the noise extrapolated in time, integrated exactly. Zhang & Chen 2023."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from dinit.diffusion import Process
from dinit.samplers.base import SAMPLERS, Claims
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import multistep_grid, own_last_step, spans_decades
from dinit.samplers.multistep.exponential_weights import Variable, check_order, choice
from dinit.samplers.multistep.rules import Extrapolate, Rule, WarmUp, lower_at_the_end
from dinit.samplers.multistep.unified import MultistepSampler, RuleSchedule
from dinit.samplers.points import End


@SAMPLERS.register("deis")
@dataclass(frozen=True)
class DEIS(MultistepSampler):
    r"""DEIS-AB: a polynomial through the last eps in t, sigma / alpha or half the log-SNR. Zhang & Chen 2023.

    Formula: $\frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t} + \int_{u_t}^{u_s} P\,du,\quad u =
        \frac{\sigma}{\alpha},\quad P \text{ the polynomial through the last } \varepsilon \text{ in } t,\ u \text{
        or } \lambda$

    d(x / alpha) = eps du is the whole ODE, so only eps is approximated: with the nodes t_j and the Lagrange
    polynomials L_j of the chosen variable, x_s / alpha_s = x_t / alpha_t + sum_j eps_j w_j, w_j the integral of
    L_j du from u_t to u_s, computed before the run. Source: arXiv:2204.13902.

    Args:
        order: Evaluations extrapolated, 1 (DDIM) to 4; the paper's tABn has n + 1.
        variable: What the polynomial is taken in: 't' (the paper's tAB), 'rho' (sigma / alpha, its rhoAB) or
            'log-rho' (half the log-SNR, as diffusers' DEISMultistepScheduler has it).
        warm_up: How the first steps, which lack evaluations, are taken: 'corrected' (again with the evaluation at
            their end), 'lower-order' (the paper's) or 'single-step'; see `rules.WarmUp`.
        lower_order_final: Whether the last steps have the orders ..., 2, 1 in runs of fewer than 15 steps, as in
            diffusers.

    Raises:
        ValueError: An option out of its range.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    order: int = 3
    variable: Literal["t", "rho", "log-rho"] = "t"
    warm_up: WarmUp = "corrected"
    lower_order_final: bool = False

    def __post_init__(self) -> None:
        check_order("deis", self.order)
        choice("deis", variable=(self.variable, Literal["t", "rho", "log-rho"]), warm_up=(self.warm_up, WarmUp))

    def grid_for(self, process: Process) -> TimeGrid:
        return multistep_grid(process, 0.92)

    def end_for(self, process: Process) -> End:
        return own_last_step(process) if spans_decades(process) else "posterior-mean"

    def claims(self) -> Claims:
        return Claims(self.rule.claimed_order(self.warm_up))

    @property
    def rule(self) -> Extrapolate:
        """The rule of every step."""
        variables: dict[str, Variable] = {"t": "t", "rho": "own", "log-rho": "log-snr"}
        return Extrapolate("eps", self.order, variable=variables[self.variable])

    def schedule_for(self, steps: int, tail: bool) -> RuleSchedule:
        rules: list[Rule] = [self.rule] * steps
        if self.lower_order_final and steps + tail < 15:
            rules = lower_at_the_end(rules, tail)
        return RuleSchedule(rules, self.warm_up)
