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
from collections.abc import Callable
from dataclasses import dataclass, field

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
    """

    name: str
    value: Callable[[Scales], Tensor] = field(repr=False)
    half_log_snr: Callable[[Tensor], Tensor] | None = field(repr=False)

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
        slope: dy/du of a Denoised, (B, C, H, W).
        numbers: value and scale of a single time in plain numbers, for the loop.
    """

    scale: Callable[[Scales], Tensor] = field(repr=False)
    slope: Callable[[Denoised], Tensor] = field(repr=False)
    numbers: Callable[[ScalarScales], tuple[float, float]] = field(repr=False)

    def at(self, k: Scales) -> float:
        """The variable at a single time, as a number."""
        return self.numbers(k.floats)[0]

    def scale_at(self, k: Scales) -> float:
        """The scale at a single time, as a number."""
        return self.numbers(k.floats)[1]

    def at_half_log_snr(self, process: Process, half_log_snr: Tensor) -> Tensor:
        """The variable where half the log-SNR has the given values."""
        if self.half_log_snr is None:
            return process.time_of(2 * half_log_snr)
        # All of these are functions of alpha / sigma alone: of any path with this log-SNR.
        alpha, sigma = half_log_snr.sigmoid(), (-half_log_snr).sigmoid()
        return self.value(Scales(half_log_snr, alpha, sigma, half_log_snr, half_log_snr))


def _length(k: Scales) -> Tensor:
    return (k.alpha**2 + k.sigma**2).sqrt()


def _turned(d: Denoised) -> Tensor:
    k = d.scales.factors
    length = math.sqrt(k.alpha * k.alpha + k.sigma * k.sigma) if isinstance(k, ScalarScales) else _length(d.scales)
    return (k.alpha * d.eps - k.sigma * d.x0) / length


def _over(above: float, below: float) -> float:
    """The quotient, inf over 0."""
    return above / below if below else math.inf


LOG_SNR = TimeVariable("log-snr", lambda k: k.log_snr / 2, lambda u: u)
TIME = ODEVariable(
    "t", lambda k: k.time, None, lambda k: torch.ones_like(k.time), lambda d: d.velocity, lambda k: (k.time, 1.0)
)
NOISE_LEVEL = ODEVariable(
    "sigma / alpha",
    lambda k: k.noise_level,
    lambda u: -u.log(),
    lambda k: k.alpha,
    lambda d: d.eps,
    lambda k: (_over(k.sigma, k.alpha), k.alpha),
)
SIGNAL_LEVEL = ODEVariable(
    "alpha / sigma",
    lambda k: k.alpha / k.sigma,
    torch.log,
    lambda k: k.sigma,
    lambda d: d.x0,
    lambda k: (_over(k.alpha, k.sigma), k.sigma),
)
STRAIGHT = ODEVariable(
    "sigma / (alpha + sigma)",
    lambda k: k.sigma / (k.alpha + k.sigma),
    lambda u: torch.log1p(-u) - u.log(),
    lambda k: k.alpha + k.sigma,
    lambda d: d.eps - d.x0,
    lambda k: (k.sigma / (k.alpha + k.sigma), k.alpha + k.sigma),
)
ANGLE = ODEVariable(
    "atan(sigma / alpha)",
    lambda k: torch.atan2(k.sigma, k.alpha),
    lambda u: -u.tan().log(),
    _length,
    _turned,
    lambda k: (math.atan2(k.sigma, k.alpha), math.sqrt(k.alpha * k.alpha + k.sigma * k.sigma)),
)


def noise_level_or_straight(t: Scales) -> ODEVariable:
    """NOISE_LEVEL, or STRAIGHT for a step that starts where the noise level is infinite."""
    return STRAIGHT if t.floats.alpha == 0 else NOISE_LEVEL
