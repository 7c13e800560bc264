"""Exact inversion by steps that look both ways. Zhang, Lewis & Kleijn 2023 (BDIA).

From x_t a solver is run twice, down to s and back up to the time r that x_t was reached from. Adding gamma times
what the way back misses of x_r corrects the last step, and makes the next state affine in x_r given x_t:

    x_s = down(x_t) + gamma (x_r - up(x_t))        and so        x_r = up(x_t) + (x_s - down(x_t)) / gamma
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from dinit.diffusion import Scales
from dinit.samplers.base import SAMPLERS, Denoise, StepNoise
from dinit.samplers.charts import NOISE_LEVEL, STRAIGHT
from dinit.samplers.inversion import Reversible, wide


class Pair(NamedTuple):
    """Two neighbouring states in float64: x where the solver stands, and `other` at the time r it came from."""

    x: Tensor
    other: Tensor
    r: Scales


@dataclass(frozen=True)
class _BDIA(Reversible):
    """What the methods of this file share. gamma: in (0, 1]; towards 0 it is the plain solver, 1 cancels most.

    Inversion divides by gamma at every step, so below 1 it is exact for as many steps as gamma^-steps leaves of
    float64: about 20 at gamma = 0.5. A run that starts without a state takes its first step with the plain solver.
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma <= 1:
            raise ValueError(f"gamma must be in (0, 1], got {self.gamma}")

    @abstractmethod
    def _moved(self, denoise: Denoise, x_t: Tensor, t: Scales, targets: list[Scales]) -> list[Tensor]:
        """What the plain solver makes of x_t at each of the target times."""

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Scales, s: Scales, state: Pair | None, noise: StepNoise
    ) -> tuple[Tensor, Pair]:
        x = x_t if state is None else state.x.to(x_t.dtype)
        here = wide(x_t) if state is None else state.x
        if state is None:
            x_s = wide(self._moved(denoise, x, t, [s])[0])
        elif state.r.numbers.t == s.numbers.t:  # turned round: the state there is known
            denoise(x, t)
            x_s = state.other
        else:
            ahead, back = self._moved(denoise, x, t, [s, state.r])
            weight = self.gamma if s.numbers.t < t.numbers.t else 1 / self.gamma
            x_s = ahead + weight * (state.other - back)
        return x_s.to(x_t.dtype), Pair(x_s, here, t)


@SAMPLERS.register("bdia-ddim")
@dataclass(frozen=True)
class BDIADDIM(_BDIA):
    """BDIA on DDIM: one evaluation a step serves both ways. Zhang et al. 2023."""

    @property
    def order(self) -> int:  # type: ignore[override]
        return 2 if self.gamma == 1 else 1

    def _moved(self, denoise: Denoise, x_t: Tensor, t: Scales, targets: list[Scales]) -> list[Tensor]:
        d = denoise(x_t, t)
        return [s.alpha * d.x0 + s.sigma * d.eps for s in targets]


@SAMPLERS.register("bdia-edm")
@dataclass(frozen=True)
class BDIAEDM(_BDIA):
    """BDIA on EDM's Heun steps in the noise level, 3 NFE a step. Zhang et al. 2023; Karras et al. 2022.

    Both ways are full Heun steps from x_t, sharing their first slope. A step to sigma = 0 is Euler's, and one
    from or to alpha = 0 goes along the straight path, as the noise level is infinite there.

    For inversion, not for pictures: the recursion carries on the errors of a network that is not exact, and most
    images of a trained one are unreadable after 50 steps.
    """

    order = 2
    nfe_per_step = 3

    def nfe(self, steps: int) -> int:
        return max(super().nfe(steps) - 1, 1)  # the first step has nothing to look back to

    def _moved(self, denoise: Denoise, x_t: Tensor, t: Scales, targets: list[Scales]) -> list[Tensor]:
        d = denoise(x_t, t)
        moved = []
        for s in targets:
            chart = STRAIGHT if 0 in (t.numbers.alpha, s.numbers.alpha) else NOISE_LEVEL
            y, h, slope = x_t / chart.scale(t), chart.variable(s) - chart.variable(t), chart.slope(d)
            if s.numbers.sigma > 0:
                slope = (slope + chart.slope(denoise(chart.scale(s) * (y + h * slope), s))) / 2
            moved.append(chart.scale(s) * (y + h * slope))
        return moved
