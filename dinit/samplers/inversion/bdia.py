"""BDIA: exact inversion by bi-directional integration approximation. Zhang, Lewis & Kleijn 2023; arXiv:2307.10829.

From x_t a solver is run twice, down to s and back up to the time r that x_t was reached from. Adding gamma times
the difference of x_r and what the step back gives corrects the last step, and makes the next state affine in x_r
given x_t:

    x_s = down(x_t) + c (x_r - up(x_t)),  c = gamma rho_s / rho_r,  and so  x_r = up(x_t) + (x_s - down(x_t)) / c

with rho = (alpha² + sigma²)^1/2, the size of a state. It is 1 on VP, the paper's path; on VE an error made at
sigma = 80 would hide the image if it were carried down unscaled.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from dinit.diffusion import Process, Scales
from dinit.samplers.base import SAMPLERS, Claims, StepDenoiser, StepNoise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.inversion.invert import Reversible, wide
from dinit.samplers.multistep.ode_variables import NOISE_LEVEL, STRAIGHT


class Pair(NamedTuple):
    """Two neighbouring states in float64.

    Attributes:
        x: (B, C, H, W), the present state.
        other: (B, C, H, W), the state before it.
        r: Scales of the time of `other`.
    """

    x: Tensor
    other: Tensor
    r: Scales


@dataclass(frozen=True)
class _BDIA(Reversible):
    """A step of BDIA, on the solver of the subclass.

    Inversion divides by gamma at every step, so below 1 it is exact for as many steps as gamma^-steps leaves of
    float64: about 20 at gamma = 0.5. A run that starts without a state takes its first step with the plain solver.

    Args:
        gamma: Share of the correction, in (0, 1]. Towards 0 it is the plain solver; 1 cancels most of the error.

    Raises:
        ValueError: gamma outside (0, 1].
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {self.gamma}")

    @abstractmethod
    def _moved(self, denoise: StepDenoiser, x_t: Tensor, t: Scales, targets: list[Scales]) -> list[Tensor]:
        """The plain solver's states at each of the target times, from x_t."""

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Pair | None, noise: StepNoise
    ) -> tuple[Tensor, Pair]:
        x = x_t if state is None else state.x.to(x_t.dtype)
        here = wide(x_t) if state is None else state.x
        if state is None:
            x_s = wide(self._moved(denoise, x, t, [s])[0])
        elif state.r.floats.time == s.floats.time:  # the run turns round: the state there is known
            denoise(x, t)
            x_s = state.other
        else:
            ahead, back = self._moved(denoise, x, t, [s, state.r])
            gamma = self.gamma if s.floats.time < t.floats.time else 1 / self.gamma
            x_s = ahead + gamma * _size(s) / _size(state.r) * (state.other - back)
        return x_s.to(x_t.dtype), Pair(x_s, here, t)


def _size(k: Scales) -> float:
    """The size of a state whose data has unit variance."""
    return math.hypot(k.floats.alpha, k.floats.sigma)


@SAMPLERS.register("bdia-ddim")
@dataclass(frozen=True)
class BDIADDIM(_BDIA):
    r"""Exact inversion by BDIA on DDIM: one evaluation a step for both ways. Zhang et al. 2023.

    Formula: $x_s = D_{t\to s}(x_t) + \gamma\,\frac{\rho_s}{\rho_r}\,(x_r - D_{t\to r}(x_t)),\quad \rho^2 = \alpha^2
        + \sigma^2,\ D \text{ DDIM's step},\ r > t > s$

    Inversion divides by gamma at every step: below 1 it is exact for about log(1e16) / log(1 / gamma) steps.
    Source: arXiv:2307.10829.

    Args:
        gamma: Share of the correction, in (0, 1]. Towards 0 it is DDIM; 1, of order 2, cancels most of the error.
    """

    def claims(self) -> Claims:
        return Claims(2 if self.gamma == 1 else 1)

    def _moved(self, denoise: StepDenoiser, x_t: Tensor, t: Scales, targets: list[Scales]) -> list[Tensor]:
        d = denoise(x_t, t)
        return [s.floats.alpha * d.x0 + s.floats.sigma * d.eps for s in targets]


@SAMPLERS.register("bdia-edm")
@dataclass(frozen=True)
class BDIAEDM(_BDIA):
    r"""Exact inversion by BDIA on Heun's steps, as in EDM, 3 NFE a step. Zhang et al. 2023; Karras et al. 2022.

    Formula: $x_s = D_{t\to s}(x_t) + \gamma\,\frac{\rho_s}{\rho_r}\,(x_r - D_{t\to r}(x_t)),\quad \rho^2 = \alpha^2
        + \sigma^2,\ D \text{ Heun's step in } \tfrac{\sigma}{\alpha+\sigma},\ r > t > s$

    Both ways are full Heun steps from x_t, sharing their first slope. A step to sigma = 0 is Euler's. Source:
    arXiv:2307.10829.

    Args:
        gamma: Share of the correction, in (0, 1]. Towards 0 it is Heun; 1 cancels most of the error.
        variable: What the steps are taken in. 'straight' is sigma / (alpha + sigma), on x / (alpha + sigma).
            'noise-level' is sigma / alpha, EDM's and the paper's: its first steps are so long that the errors of a
            trained network grow until images are unreadable; steps from or to alpha = 0 are straight there.

    Raises:
        ValueError: gamma outside (0, 1]; another variable.
    """

    variable: Literal["straight", "noise-level"] = "straight"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variable not in ("straight", "noise-level"):
            raise ValueError(f"variable must be 'straight' or 'noise-level', got {self.variable!r}")

    def claims(self) -> Claims:
        return Claims(order=2, nfe_per_step=3)

    def grid_for(self, process: Process) -> TimeGrid:
        return Shifted()  # steps of like size in the variable, which the correction assumes

    def nfe(self, steps: int) -> int:
        return max(super().nfe(steps) - 1, 1)  # the first step has no state before it

    def _moved(self, denoise: StepDenoiser, x_t: Tensor, t: Scales, targets: list[Scales]) -> list[Tensor]:
        d = denoise(x_t, t)
        moved = []
        for s in targets:
            straight = self.variable == "straight" or 0 in (t.floats.alpha, s.floats.alpha)
            ode = STRAIGHT if straight else NOISE_LEVEL
            y, h, slope = x_t / ode.scale_at(t), ode.at(s) - ode.at(t), ode.slope(d)
            if s.floats.sigma > 0:
                slope = (slope + ode.slope(denoise(ode.scale_at(s) * (y + h * slope), s))) / 2
            moved.append(ode.scale_at(s) * (y + h * slope))
        return moved
