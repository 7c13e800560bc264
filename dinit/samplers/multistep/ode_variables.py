"""Changes of variables for the probability-flow ODE: a rescaled state that moves along one network output.

With y = x / scale and a variable u of the time, dy/du is a combination of x0 and eps without a stiff linear part:

    name            prediction      scale                  u                  dy/du
    TIME            path-velocity   1                      t                  dx/dt = alpha' x0 + sigma' eps
    NOISE_LEVEL     eps             alpha                  sigma / alpha      eps
    SIGNAL_LEVEL    x0              sigma                  alpha / sigma      x0
    STRAIGHT        velocity        alpha + sigma          sigma / scale      eps - x0
    ANGLE           v               (alpha²+sigma²)^1/2    atan(sigma/alpha)  (alpha eps - sigma x0) / scale

The solutions are the same; the steps of a solver are not. NOISE_LEVEL is that of Song et al. 2021 (DDIM, Eq. 14)
and Karras et al. 2022; STRAIGHT is flow matching's path alpha + sigma = 1, onto which any path is scaled. Where
alpha is 0 the noise level is infinite, and STRAIGHT takes its place; TIME has no finite slope where sigma' is
infinite (VP at t = 0).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dinit.diffusion import Denoised, Process, Scales
from dinit.diffusion.process import ScalarScales


@dataclass(frozen=True, eq=False)
class TimeVariable:
    """A monotone variable of the time.

    Attributes:
        name: For messages.
        value: The variable at given scales, float64, in their shape.
        half_log_snr: Half the log-SNR at values of the variable; None for t itself, whose log-SNR is the process's.
        number: The variable at a single time in plain numbers, inf where it is infinite.
    """

    name: str
    value: Callable[[Scales], Tensor] = field(repr=False)
    half_log_snr: Callable[[Tensor], Tensor] | None = field(repr=False)
    number: Callable[[ScalarScales], float] = field(repr=False)

    def at(self, k: Scales) -> float:
        """The variable at a single time, as a number."""
        return self.number(k.floats)

    def time(self, process: Process, value: Tensor) -> Tensor:
        """The times at which the variable has the given values."""
        return value if self.half_log_snr is None else process.time_of(2 * self.half_log_snr(value))

    def between(self, process: Process, t: Scales, s: Scales, fraction: float) -> Tensor:
        """The time a fraction of the way from t to s in this variable; s itself at 1."""
        if fraction == 1:
            return s.time
        start, end = self.value(t), self.value(s)
        return self.time(process, start + fraction * (end - start))


@dataclass(frozen=True, eq=False)
class ODEVariable(TimeVariable):
    """A change of variables in which the probability-flow ODE is dy/du = slope, with y = x / scale.

    Attributes:
        scale: What x is divided by, at given scales, in their shape.
        factors: dy/du as factors on x0 and eps, at the scales of a single time or of many.
        scale_number: The scale at a single time in plain numbers.
    """

    scale: Callable[[Scales], Tensor] = field(repr=False)
    factors: Callable[[Any], tuple[Any, Any]] = field(repr=False)

    def slope(self, d: Denoised) -> Tensor:
        """dy/du of a Denoised, (B, C, H, W)."""
        if self is SIGNAL_LEVEL or self is NOISE_LEVEL:
            return d.x0 if self is SIGNAL_LEVEL else d.eps
        k = d.scales.factors
        x0, eps = self.factors(k)
        return d.combination(0.0, x0, eps) if isinstance(k, ScalarScales) else x0 * d.x0 + eps * d.eps

    def euler(self, d: Denoised, s: Scales) -> Tensor:
        """The state at s by Euler's step from d."""
        k, end = d.scales.floats, s.floats
        x0, eps = self.factors(k)
        scale = self.scale_number(end)
        h = scale * (self.number(end) - self.number(k))
        return d.combination(scale / self.scale_number(k), h * x0, h * eps)

    def along(self, stages: Sequence[Denoised], weights: Sequence[float], s: Scales) -> Tensor:
        """The state at s from the first stage's, by weighted slopes of all stages, in few passes over memory.

        Args:
            stages: Evaluations of the step, that at its start first.
            weights: Of their slopes, as fractions of the step to s.
            s: Where the step ends.

        Returns:
            (B, C, H, W).
        """
        t, end = stages[0].scales.floats, s.floats
        scale = self.scale_number(end)
        h = scale * (self.number(end) - self.number(t))
        x: Tensor | None = None
        for d, weight in zip(stages, weights, strict=True):
            if x is None:
                x0, eps = self.factors(t)
                x = d.combination(scale / self.scale_number(t), weight * h * x0, weight * h * eps)
            elif weight:
                x0, eps = self.factors(d.scales.floats)
                x = d.added_to(x, weight * h * x0, weight * h * eps)
        assert x is not None, "a step has a stage at its start"
        return x

    scale_number: Callable[[ScalarScales], float] = field(repr=False)

    def scale_at(self, k: Scales) -> float:
        """The scale at a single time, as a number."""
        return self.scale_number(k.floats)

    def at_half_log_snr(self, process: Process, half_log_snr: Tensor) -> Tensor:
        """The variable where half the log-SNR has the given values."""
        if self.half_log_snr is None:
            return process.time_of(2 * half_log_snr)
        # All of these are functions of alpha / sigma alone: of any path with this log-SNR.
        alpha, sigma = half_log_snr.sigmoid(), (-half_log_snr).sigmoid()
        return self.value(Scales(half_log_snr, alpha, sigma, half_log_snr, half_log_snr))


def _length(k: Scales) -> Tensor:
    return (k.alpha**2 + k.sigma**2).sqrt()


def _over(above: float, below: float) -> float:
    """The quotient, inf over 0."""
    return above / below if below else math.inf


def _length_number(k: ScalarScales) -> float:
    return math.sqrt(k.alpha * k.alpha + k.sigma * k.sigma)


def _turned(k: Any) -> tuple[Any, Any]:
    length = _length_number(k) if isinstance(k, ScalarScales) else _length(k)
    return -k.sigma / length, k.alpha / length


LOG_SNR = TimeVariable("log-snr", lambda k: k.log_snr / 2, lambda u: u, lambda k: k.log_snr / 2)
TIME = ODEVariable(
    name="t",
    value=lambda k: k.time,
    half_log_snr=None,
    number=lambda k: k.time,
    scale=lambda k: torch.ones_like(k.time),
    scale_number=lambda k: 1.0,
    factors=lambda k: (k.d_alpha, k.d_sigma),
)
NOISE_LEVEL = ODEVariable(
    name="sigma / alpha",
    value=lambda k: k.noise_level,
    half_log_snr=lambda u: -u.log(),
    number=lambda k: _over(k.sigma, k.alpha),
    scale=lambda k: k.alpha,
    scale_number=lambda k: k.alpha,
    factors=lambda k: (0.0, 1.0),
)
SIGNAL_LEVEL = ODEVariable(
    name="alpha / sigma",
    value=lambda k: k.alpha / k.sigma,
    half_log_snr=torch.log,
    number=lambda k: _over(k.alpha, k.sigma),
    scale=lambda k: k.sigma,
    scale_number=lambda k: k.sigma,
    factors=lambda k: (1.0, 0.0),
)
STRAIGHT = ODEVariable(
    name="sigma / (alpha + sigma)",
    value=lambda k: k.sigma / (k.alpha + k.sigma),
    half_log_snr=lambda u: torch.log1p(-u) - u.log(),
    number=lambda k: k.sigma / (k.alpha + k.sigma),
    scale=lambda k: k.alpha + k.sigma,
    scale_number=lambda k: k.alpha + k.sigma,
    factors=lambda k: (-1.0, 1.0),
)
ANGLE = ODEVariable(
    name="atan(sigma / alpha)",
    value=lambda k: torch.atan2(k.sigma, k.alpha),
    half_log_snr=lambda u: -u.tan().log(),
    number=lambda k: math.atan2(k.sigma, k.alpha),
    scale=_length,
    scale_number=_length_number,
    factors=_turned,
)


def noise_level_or_straight(t: Scales) -> ODEVariable:
    """NOISE_LEVEL, or STRAIGHT for a step that starts where the noise level is infinite."""
    return STRAIGHT if t.floats.alpha == 0 else NOISE_LEVEL
