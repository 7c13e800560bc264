"""Restart sampling: a deterministic solver that goes back up in noise a few times. Xu et al. 2023."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from dinit.arguments import check_arguments
from dinit.diffusion import Denoiser, Process, Scales
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import noise_level_grid
from dinit.samplers.multistep.ode_variables import NOISE_LEVEL, noise_level_or_straight
from dinit.samplers.ode.runge_kutta import TRAPEZOID, runge_kutta_step


@check_arguments
@dataclass(frozen=True)
class Interval:
    """A restart interval, in noise levels sigma / alpha.

    Args:
        low: Its lower end, 0 < low < high.
        high: Its upper end.
        steps: Noise levels from high back down to low, both included, at least 2.
        repeats: How often the interval is gone through, at least 1; the paper's K.

    Raises:
        ValueError: A number out of its range.
    """

    low: float
    high: float
    steps: int = 3
    repeats: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high:
            raise ValueError(f"a restart interval needs 0 < low < high, got low = {self.low}, high = {self.high}")
        if self.steps < 2 or self.repeats < 1:
            raise ValueError(
                f"a restart takes at least 2 noise levels and 1 repeat, got steps = {self.steps} and "
                f"repeats = {self.repeats}"
            )

    def reached(self, t: Scales, s: Scales) -> bool:
        """Whether the step from t to s is the one that arrives in or passes the lower end."""
        before, after = (k.floats.sigma / k.floats.alpha if k.floats.alpha else torch.inf for k in (t, s))
        return after <= self.low < before

    def noise_levels(self, s: Tensor, rho: float) -> Tensor:
        """(N, steps - 1): noise levels of the steps back from high to s (N,), without s; spaced as Karras's."""
        u = torch.arange(self.steps - 1, dtype=torch.float64) / (self.steps - 1)
        high = torch.tensor(self.high, dtype=torch.float64) ** (1 / rho)
        return (high + u * (s[:, None].clamp(max=self.low) ** (1 / rho) - high)) ** rho


@SAMPLERS.register("restart")
@dataclass(frozen=True)
class Restart(Sampler):
    r"""EDM's Heun that, once a noise interval is crossed, adds noise up to its top and solves down again.

    Formula: $y_s = y_t + \tfrac{1}{2}(u_s - u_t)\left(\varepsilon(y_t, u_t) + \varepsilon(y_t + (u_s -
        u_t)\,\varepsilon(y_t, u_t),\, u_s)\right);\quad \text{then } y \leftarrow y + \sqrt{u_{max}^2 -
        u_{min}^2}\, z \text{ and down again}$

    Xu et al. 2023 (Restart), Algorithm 1; arXiv:2306.14878. The added noise contracts the errors made so far, and
    the few steps keep the discretisation error small. An interval is restarted when the grid first steps to or past
    its lower end, from the time reached there; a grid that stays above it never restarts, with a warning. A run
    that starts below an interval's top is refused with a ValueError.

    Args:
        intervals: Restart intervals, from high to low noise; the default is the paper's for CIFAR-10.
        s_noise: A factor on the standard deviation of the added noise, at least 0.
        rho: Spacing of the noise levels within an interval, as in Karras's grid; positive.

    Raises:
        ValueError: No interval; a negative s_noise; rho that is not positive.
    """

    intervals: tuple[Interval, ...] = (Interval(0.06, 0.30, steps=3, repeats=2),)
    s_noise: float = 1.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        for one in self.intervals:
            if not isinstance(one, Interval | Mapping):
                raise ValueError(f"intervals must be a list of Interval objects or mappings, got {one!r} in it")
        made = tuple(i if isinstance(i, Interval) else Interval(**i) for i in self.intervals)
        object.__setattr__(self, "intervals", made)
        if not made:
            raise ValueError("restart needs at least one interval; without any it would be 'edm-heun'")
        if not (self.s_noise >= 0 and self.rho > 0):
            raise ValueError(f"s_noise must be >= 0 and rho positive, got {self.s_noise} and {self.rho}")

    def claims(self) -> Claims:
        draws = sum(interval.repeats for interval in self.intervals)
        return Claims(order=2, nfe_per_step=2, draws_per_step=draws, cost_depends_on="times")

    def grid_for(self, process: Process) -> TimeGrid:
        return noise_level_grid(process)

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        top = float(points[0].noise_level)
        for interval in self.intervals:
            if interval.high > top:
                raise ValueError(
                    f"{interval} reaches above the run's first noise level, {top:.3g}: start at a noisier time, or "
                    "lower the interval"
                )
            if len(points) > 1 and not any(interval.reached(t, s) for t, s in pairwise(points)):
                warnings.warn(
                    f"{interval} is never restarted: the last step of this run ends at the noise level "
                    f"{float(points[-1].noise_level):.3g}, above its lower end. Take more steps, or raise low",
                    UserWarning,
                    stacklevel=5,
                )

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        process = denoiser.process
        return torch.cat(
            [_times(process, interval.noise_levels(s.noise_level, self.rho)) for interval in self.intervals], 1
        )

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: None, noise: StepNoise
    ) -> tuple[Tensor, None]:
        x, drawn, first = _heun(denoise, x_t, t, s), 0, 0
        for interval in self.intervals:
            down = [*denoise.inner[first : first + interval.steps - 1], s]
            first += interval.steps - 1
            for _ in range(interval.repeats if interval.reached(t, s) else 0):
                x = self._raise(x, s, down[0], noise(drawn, x_t))
                drawn += 1
                x = _down(denoise, x, down)
        return x, None

    def _raise(self, x_s: Tensor, s: Scales, top: Scales, z: Tensor) -> Tensor:
        """The state at the top of the interval, from that at its lower end."""
        higher, level = NOISE_LEVEL.at(top), NOISE_LEVEL.at(s)
        added = math.sqrt(higher * higher - level * level)
        return top.floats.alpha * (x_s / s.floats.alpha + self.s_noise * added * z)


def _times(process: Process, levels: Tensor) -> Tensor:
    return process.time_of_noise_level(levels)


def _down(denoise: StepDenoiser, x: Tensor, points: Sequence[Scales]) -> Tensor:
    for t, s in pairwise(points):
        x = _heun(denoise, x, t, s)
    return x


def _heun(denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales) -> Tensor:
    """Heun in the noise level; onto sigma = 0 Euler, which is the posterior mean."""
    if s.floats.sigma == 0:
        return s.floats.alpha * denoise(x_t, t).x0
    return runge_kutta_step(TRAPEZOID, noise_level_or_straight(t), denoise, x_t, t, s, [s])
