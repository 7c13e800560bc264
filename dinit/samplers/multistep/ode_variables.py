"""Variables in which the probability-flow ODE is solved: a rescaled state that moves along a network output.

With y = x / scale and a variable u of the time, dy/du is a combination of x0 and eps that has no stiff linear part:

chart         y                  u                        dy/du
TIME          x                  t                        velocity = alpha' x0 + sigma' eps
NOISE_LEVEL   x / alpha          sigma / alpha            eps (Song et al. 2021, DDIM, Eq. 14; Karras et al. 2022)
STRAIGHT      x / (alpha+sigma)  sigma / (alpha + sigma)  eps - x0 (flow matching; Liu et al. 2023)

The solutions are the same; the steps of a solver are not. Where alpha is 0 the noise level is infinite, and the
straight chart takes its place; TIME has no finite slope where sigma' is infinite (VP at t = 0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.diffusion import Denoised, Process, Scales


@dataclass(frozen=True)
class Chart:
    """scale and variable: of scales, float64. slope: dy/du of a Denoised. time: of a variable on a process."""

    scale: Callable[[Scales], Tensor]
    variable: Callable[[Scales], Tensor]
    slope: Callable[[Denoised], Tensor]
    time: Callable[[Process, Tensor], Tensor]

    def between(self, process: Process, t: Scales, s: Scales, fraction: float) -> Tensor:
        """The time that lies a fraction of the way from t to s in this chart's variable; s itself at 1."""
        if fraction == 1:
            return s.time
        start, end = self.variable(t), self.variable(s)
        return self.time(process, start + fraction * (end - start))


def _time_of_straight(process: Process, u: Tensor) -> Tensor:
    return process.time_of(2 * (torch.log1p(-u) - u.log()))


TIME = Chart(lambda k: torch.ones_like(k.time), lambda k: k.time, lambda d: d.velocity, lambda _, u: u)
NOISE_LEVEL = Chart(
    lambda k: k.alpha, lambda k: k.noise_level, lambda d: d.eps, lambda process, u: process.time_of_noise_level(u)
)
STRAIGHT = Chart(
    lambda k: k.alpha + k.sigma, lambda k: k.sigma / (k.alpha + k.sigma), lambda d: d.eps - d.x0, _time_of_straight
)


def noise_chart(t: Scales) -> Chart:
    """NOISE_LEVEL, and STRAIGHT for a step that starts where the noise level is infinite."""
    return STRAIGHT if t.floats.alpha == 0 else NOISE_LEVEL
