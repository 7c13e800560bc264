"""DPM-Solver++ on the SDE: single-step, and multistep of orders two and three. Lu et al. 2022 (DPM-Solver++)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dinit.diffusion import Denoiser, Scales
from dinit.diffusion.denoised import weighted
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.sde.ancestral import ancestral_split, check_noise
from dinit.samplers.sde.exponential import linear_part, moments

# The posterior means of earlier steps and half their log-SNR, the latest first.
History = tuple[tuple[Tensor, float], ...]


@SAMPLERS.register("dpmpp-sde", aliases=("k-dpmpp-sde",))
@dataclass(frozen=True)
class DPMppSDE(Sampler):
    r"""DPM-Solver++(2S) on the SDE: the posterior mean at the middle of the step stands for all of it.

    Formula: $x_s = a\,x_t + (\alpha_s - a\,\alpha_t)\,x_0(x_m, \lambda_m) + \sigma_{up}\, z,\quad \sigma_{up} =
        \eta\,\sigma_s \sqrt{1 - e^{-2h}},\quad a = \frac{1}{\sigma_t}\sqrt{\sigma_s^2 - \sigma_{up}^2}, \quad
        \lambda_m = \lambda_t + \tfrac{h}{2}$

    lambda = log(alpha / sigma) is half the log-SNR and h its rise over the step; x_m is the same step from x_t to
    lambda_m with x0(x_t) and a draw of its own. For eta above 1, sigma_up is at most sigma_s. Lu et al. 2022
    (DPM-Solver++), Section 5, arXiv:2211.01095, as k-diffusion runs it: both are ancestral steps, DPM-Solver++(1)
    and a draw. A step from alpha = 0 or to sigma = 0 has no middle in log-SNR: there one evaluation makes its
    first-order limit.

    Args:
        eta: At least 0. 0 is deterministic (the midpoint rule in half the log-SNR, second order), 1 the
            reverse-time SDE.
        s_noise: Factor on the noise, positive.

    Raises:
        ValueError: eta or s_noise out of its range.
    """

    eta: float = 1.0
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        check_noise(self)

    def claims(self) -> Claims:
        draws = 2 if self.eta > 0 else 0
        return Claims(1 if draws else 2, nfe_per_step=2, draws_per_step=draws, cost_depends_on="times")

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        middle = (t.log_snr + s.log_snr) / 2
        times = denoiser.process.time_of(torch.where(middle.isfinite(), middle, torch.zeros_like(middle)))
        return torch.where(middle.isfinite(), times, s.time)[:, None]

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        x0 = denoise(x_t, t).x0
        if t.floats.alpha > 0 and s.floats.sigma > 0:
            middle = denoise.inner[0]
            x0 = denoise(self._ancestral(x_t, x0, t, middle, noise, 0), middle).x0
        return self._ancestral(x_t, x0, t, s, noise, 1), None

    def _ancestral(self, x_t: Tensor, x0: Tensor, t: Scales, s: Scales, noise: StepNoise, draw: int) -> Tensor:
        """x at s, from x at t and a posterior mean that is the same all along the step."""
        down, up = ancestral_split(t.floats, s.floats, self.eta)
        keep = down / t.floats.sigma
        x_s = weighted(keep, x_t, s.floats.alpha - keep * t.floats.alpha, x0)
        return weighted(1.0, x_s, self.s_noise * up, noise(draw, x_t)) if self.eta > 0 else x_s


@SAMPLERS.register("dpmpp-2m-sde", aliases=("sde-dpm-solver++", "sde-dpm-solver++(2m)", "k-dpmpp-2m-sde"))
@dataclass(frozen=True)
class DPMpp2MSDE(Sampler):
    r"""DPM-Solver++(2M) on the SDE: x0 extrapolated in half the log-SNR. Lu et al. 2022 (DPM-Solver++), Section 5.

    Formula: $x_s = \frac{\sigma_s}{\sigma_t} e^{-\eta h} x_t + \alpha_s \left(1 - e^{-(1+\eta)h}\right)\left(x_0 +
        \frac{h}{2h'}(x_0 - x_0')\right) + \sigma_s \sqrt{1 - e^{-2\eta h}}\, z$

    h is the rise of lambda = log(alpha / sigma) over the step, h' and x0' those of the step before. The first step
    is of first order, and so is a step that starts at or follows alpha = 0 or ends at sigma = 0. Source:
    arXiv:2211.01095.

    Args:
        eta: At least 0. 0 is dpmpp-2m, 1 the reverse-time SDE.
        s_noise: Factor on the noise, positive.
        variant: Weight of the slope of the posterior mean: 'midpoint' (the formula, the paper's) or 'heun' (the
            integral of its line).
        order: 2, or 1 for DPM-Solver++(1) on the SDE, which at eta = 1 is DDPM.
        prediction: 'x0', or 'eps' for SDE-DPM-Solver, the same in the noise (Lu et al. 2022 (DPM-Solver++),
            Section 5): with the variant 'midpoint' only, not from alpha = 0, and less stable.

    Raises:
        ValueError: An option out of its range, or 'heun' with 'eps'.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    eta: float = 1.0
    s_noise: float = 1.0
    variant: Literal["midpoint", "heun"] = "midpoint"
    order: Literal[1, 2] = 2
    prediction: Literal["x0", "eps"] = "x0"

    def __post_init__(self) -> None:
        check_noise(self)
        if self.prediction not in ("x0", "eps"):
            raise ValueError(f"prediction must be 'x0' or 'eps', got {self.prediction!r}")
        if self.prediction == "eps" and self.variant != "midpoint":
            raise ValueError("SDE-DPM-Solver, prediction='eps', has the variant 'midpoint' only")
        if self.variant not in ("midpoint", "heun"):
            raise ValueError(f"variant must be 'midpoint' or 'heun', got {self.variant!r}")
        if self.order not in (1, 2):
            raise ValueError(f"order must be 1 or 2, got {self.order!r}; the solver of order 3 is 'dpmpp-3m-sde'")

    def claims(self) -> Claims:
        return Claims(draws_per_step=1) if self.eta > 0 else Claims(self.order)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: History | None, noise: StepNoise
    ) -> tuple[Tensor, History]:
        if self.prediction == "eps":
            return self._in_noise(denoise(x_t, t).eps, x_t, t, s, state or (), noise)
        x0 = denoise(x_t, t).x0
        half_log_snr = t.floats.log_snr / 2
        linear = linear_part(t.floats, s.floats, self.eta)
        x_s = weighted(linear.keep, x_t, linear.gain, x0)
        history = state or ()
        if self.order == 2 and history and s.floats.sigma > 0:
            x0_before, before = history[0]
            weight = linear.gain / 2 if self.variant == "midpoint" else linear.alpha_s * moments(linear.decay, 2)[1]
            x_s = weighted(1.0, x_s, weight * linear.h / (half_log_snr - before), x0 - x0_before)
        if self.eta > 0:
            x_s = weighted(1.0, x_s, self.s_noise * linear.std, noise(0, x_t))
        return x_s, remember(x0, half_log_snr, history, 1)

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        if self.prediction == "eps" and len(points) > 1 and points[0].floats.alpha == 0:
            raise ValueError(
                f"SDE-DPM-Solver's step is infinite from alpha = 0, at t = {points[0].floats.time:g}: start a "
                "little later, or use prediction='x0'"
            )

    def _in_noise(
        self, eps: Tensor, x_t: Tensor, t: Scales, s: Scales, history: History, noise: StepNoise
    ) -> tuple[Tensor, History]:
        """x_s / alpha_s = x_t / alpha_t - (1 + eta) (u_t - u_s) (eps extrapolated to the middle) + noise."""
        a, b = t.floats, s.floats
        u_t, u_s = a.sigma / a.alpha, b.sigma / b.alpha
        slope = eps
        if self.order == 2 and history and b.sigma > 0:
            eps_before, before = history[0]
            slope = eps + (b.log_snr - a.log_snr) / (a.log_snr - 2 * before) / 2 * (eps - eps_before)
        x_s = weighted(b.alpha / a.alpha, x_t, -(1 + self.eta) * b.alpha * (u_t - u_s), slope)
        if self.eta > 0:
            std = b.alpha * math.sqrt(self.eta * (u_t**2 - u_s**2))
            x_s = weighted(1.0, x_s, self.s_noise * std, noise(0, x_t))
        return x_s, remember(eps, a.log_snr / 2, history, 1)


@SAMPLERS.register("dpmpp-3m-sde", aliases=("k-dpmpp-3m-sde",))
@dataclass(frozen=True)
class DPMpp3MSDE(Sampler):
    r"""DPM-Solver++(3M) on the SDE: a parabola in half the log-SNR through three x0. Lu et al. 2022 (DPM-Solver++).

    Formula: $x_s = \frac{\sigma_s}{\sigma_t} e^{-\eta h} x_t + \alpha_s \int_{\lambda_t}^{\lambda_s} (1+\eta)\,
        e^{-(1+\eta)(\lambda_s-\lambda)} P(\lambda)\,d\lambda + \sigma_s \sqrt{1 - e^{-2\eta h}}\, z,\quad P \text{
        the parabola through the last three } x_0$

    lambda = log(alpha / sigma), h its rise over the step. The degree of P rises with the history: the first step
    is of first order, the second of second; a step from alpha = 0 or to sigma = 0 is of first. Source:
    arXiv:2211.01095.

    Args:
        eta: At least 0. 0 is deterministic, 1 the reverse-time SDE.
        s_noise: Factor on the noise, positive.
        curvature: Weight of the parabola's second difference. 'exact' is the integral's, which the third order at
            eta = 0 rests on; 'published' is half of it, as in the code of DPM-Solver++ and k-diffusion, for the
            second order.
        max_step_ratio: A step longer than this times the one before it takes a line in place of the parabola,
            which goes astray there. Positive; inf in the published code.

    Raises:
        ValueError: An option out of its range.
    """

    unlimited_options: ClassVar = ("max_step_ratio",)

    renamed_options: ClassVar[Mapping[str, str]] = {"reach": "max_step_ratio"}

    eta: float = 1.0
    s_noise: float = 1.0
    curvature: Literal["exact", "published"] = "exact"
    max_step_ratio: float = 2.0

    def __post_init__(self) -> None:
        check_noise(self)
        if self.curvature not in ("exact", "published"):
            raise ValueError(f"curvature must be 'exact' or 'published', got {self.curvature!r}")
        if not self.max_step_ratio > 0:
            raise ValueError(f"max_step_ratio must be positive, got {self.max_step_ratio}")

    def claims(self) -> Claims:
        if self.eta > 0:
            return Claims(draws_per_step=1)
        return Claims(3 if self.curvature == "exact" else 2)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: History | None, noise: StepNoise
    ) -> tuple[Tensor, History]:
        x0 = denoise(x_t, t).x0
        half_log_snr = t.floats.log_snr / 2
        linear = linear_part(t.floats, s.floats, self.eta)
        x_s = weighted(linear.keep, x_t, linear.gain, x0)
        history = state or ()
        if history and s.floats.sigma > 0:
            for weight, mean in self._bend(x0, half_log_snr, history, linear.h, linear.decay):
                x_s = weighted(1.0, x_s, linear.alpha_s * weight, mean)
        if self.eta > 0:
            x_s = weighted(1.0, x_s, self.s_noise * linear.std, noise(0, x_t))
        return x_s, remember(x0, half_log_snr, history, 2)

    def _bend(
        self, x0: Tensor, at: float, history: History, h: float, decay: float
    ) -> tuple[tuple[float, Tensor], ...]:
        """What the change of x0 along the step adds, in Newton's form with theta = (lambda - lambda_t) / h.

        Returns:
            Weights and differences of x0 whose sum it is.
        """
        _, m1, m2 = moments(decay, 3)
        (x0_1, at_1), *older = history
        slope, rise = h / (at - at_1), x0 - x0_1
        if not older or h > self.max_step_ratio * (at - at_1):
            return ((m1 * slope, rise),)
        x0_2, at_2 = older[0]
        half = 0.5 if self.curvature == "published" else 1.0
        second = h / (at - at_2) * (m1 * (at - at_1) / h + half * m2)
        return ((m1 + second) * slope, rise), (-second * h / (at_1 - at_2), x0_1 - x0_2)


def remember(x0: Tensor, half_log_snr: float, history: History, length: int) -> History:
    """The history with one more entry, the latest first; it starts again at -inf, where alpha is 0."""
    return ((x0, half_log_snr), *history)[:length] if half_log_snr > float("-inf") else ()
