"""Solvers in the noise level sigma / alpha, with churn. Karras et al. 2022, Algorithms 2 and 3, on any path.

With y = x / alpha the probability-flow ODE is dy/du = eps in the noise level u, which is EDM's dx/dsigma. Where
alpha is 0 at the first time, u is infinite there and that one step is taken along the straight path (see
ode_variables). 'euler' and 'heun' step in t, which is the same on EDM's process alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dinit.diffusion import Denoiser, Process, Scales
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import noise_level_grid
from dinit.samplers.idle import refuse_idle
from dinit.samplers.multistep.ode_variables import NOISE_LEVEL, STRAIGHT, TIME, ODEVariable, noise_level_or_straight


@dataclass(frozen=True)
class Churned(Sampler):
    """A step with churn: noise is added, then one deterministic step is taken. Karras et al. 2022, Algorithm 2.

    A noise level u in [s_tmin, s_tmax] is raised to u (1 + gamma), gamma = min(s_churn / steps, sqrt(2) - 1), and
    never above the denoiser's noisiest time. Subclasses give the deterministic step.

    Args:
        s_churn: How much noise is added over all steps, at least 0; 0 is deterministic.
        s_tmin: The least noise level sigma / alpha at which noise is added.
        s_tmax: The largest one.
        s_noise: A factor on the standard deviation of the added noise, at least 0.

    Raises:
        ValueError: A negative or infinite s_churn or s_noise; s_tmin > s_tmax; s_tmin, s_tmax or s_noise without
            churn.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.s_churn < math.inf and 0 <= self.s_noise < math.inf):
            raise ValueError(
                f"s_churn and s_noise must be >= 0, got s_churn = {self.s_churn}, s_noise = {self.s_noise}"
            )
        if not self.s_tmin <= self.s_tmax:
            raise ValueError(f"churn needs s_tmin <= s_tmax, got s_tmin = {self.s_tmin}, s_tmax = {self.s_tmax}")
        if self.s_churn == 0:
            refuse_idle(self, ("s_tmin", "s_tmax", "s_noise"), "without churn", "set s_churn")

    order: ClassVar[int] = 1  # of the deterministic step, which evaluates as often

    def claims(self) -> Claims:
        cost = "times" if self.s_churn else "steps"  # which noise levels lie in [s_tmin, s_tmax]
        return Claims(self.order, self.order, draws_per_step=int(self.s_churn > 0), cost_depends_on=cost)

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        levels = [NOISE_LEVEL.at(k) for k in points[:-1]] if self.s_churn > 0 else []
        if levels and not any(self.s_tmin <= level <= self.s_tmax for level in levels):
            warnings.warn(
                f"s_churn = {self.s_churn:g} adds no noise: no step of this run starts at a noise level in "
                f"[s_tmin, s_tmax] = [{self.s_tmin:g}, {self.s_tmax:g}], but between {max(levels):.3g} and "
                f"{min(levels):.3g}",
                UserWarning,
                stacklevel=5,
            )

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        """The raised time, and those of the deterministic step from there to s."""
        raised = self._raised(denoiser, t, total)
        start = denoiser.process.scales(raised)
        return torch.stack([raised, *self._nodes(denoiser, start, s)], dim=-1)

    def _raised(self, denoiser: Denoiser, t: Scales, total: int) -> Tensor:
        gamma = min(self.s_churn / total, math.sqrt(2) - 1)
        level = t.noise_level
        churned = (level >= self.s_tmin) & (level <= self.s_tmax) & level.isfinite() & (gamma > 0)
        if not bool(churned.any()):
            return t.time
        raised = denoiser.process.time_of_noise_level(
            torch.where(churned, level, torch.ones_like(level)) * (1 + gamma)
        )
        return torch.where(churned, raised.clamp(max=denoiser.t_max).maximum(t.time), t.time)

    def _nodes(self, denoiser: Denoiser, start: Scales, s: Scales) -> list[Tensor]:
        """The times between `start` and s, (N,) each, that `_move` evaluates at."""
        return []

    def _move(self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, nodes: tuple[Scales, ...]) -> Tensor:
        """One deterministic step."""
        raise NotImplementedError

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: None, noise: StepNoise
    ) -> tuple[Tensor, None]:
        raised, *nodes = denoise.inner
        if raised.floats.time > t.floats.time:
            higher, level = NOISE_LEVEL.at(raised), NOISE_LEVEL.at(t)
            added = math.sqrt(higher * higher - level * level)
            x_t = raised.floats.alpha * (x_t / t.floats.alpha + self.s_noise * added * noise(0, x_t))
            t = raised
        return self._move(denoise, x_t, t, s, tuple(nodes)), None


@SAMPLERS.register("edm-euler", aliases=("k-euler",), special_case_of="ddim")
@dataclass(frozen=True)
class EDMEuler(Churned):
    r"""Euler in the noise level, with churn; without churn it is DDIM. Options of the churn are those of EDMHeun.

    Formula: $y_s = \hat y + (u_s - \hat u)\,\varepsilon(\hat y, \hat u),\quad \hat y = y_t + \sqrt{\hat u^2 -
        u_t^2}\, z,\ \hat u = (1+\gamma) u_t$

    Karras et al. 2022, Algorithm 2 without its second-order correction; arXiv:2206.00364.
    """

    def _move(self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, nodes: tuple[Scales, ...]) -> Tensor:
        return noise_level_or_straight(t).euler(denoise(x_t, t), s)


@SAMPLERS.register("edm-heun", aliases=("edm", "k-heun"))
@dataclass(frozen=True)
class EDMHeun(Churned):
    r"""EDM's stochastic sampler: churn, then Heun in the noise level, 2 NFE. Karras et al. 2022, Algorithm 2.

    Formula: $y_s = \hat y + \tfrac{1}{2}(u_s - \hat u)\left(\varepsilon(\hat y, \hat u) + \varepsilon(\hat y +
        (u_s - \hat u)\,\varepsilon(\hat y, \hat u),\, u_s)\right),\quad \hat y = y_t + \sqrt{\hat u^2 - u_t^2}\,
        z,\ \hat u = (1 + \gamma) u_t$

    A step onto sigma = 0 is Euler's, 1 NFE. Source: arXiv:2206.00364; alpha is that of Algorithm 3.

    Args:
        s_churn: How much noise is added over all steps, at least 0; 0 is deterministic.
        s_tmin: The least noise level sigma / alpha at which noise is added.
        s_tmax: The largest one.
        s_noise: A factor on the standard deviation of the added noise, at least 0.
        alpha: Where the second evaluation is, as a fraction of the step in (0, 1]: 1 is Heun, 1/2 the midpoint,
            2/3 Ralston.
        variable: What the step is taken in: 'noise-level', or 't', the process's own time with its own scaling, as
            in EDM's ablations of published samplers.

    Raises:
        ValueError: alpha outside (0, 1]; another variable; and as for the churn.
    """

    alpha: float = 1.0
    variable: Literal["noise-level", "t"] = "noise-level"

    order = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be in (0, 1] (1 is Heun, 0.5 the midpoint), got {self.alpha}")
        if self.variable not in ("noise-level", "t"):
            raise ValueError(f"variable must be 'noise-level' or 't', got {self.variable!r}")

    def grid_for(self, process: Process) -> TimeGrid:
        return noise_level_grid(process)

    def _nodes(self, denoiser: Denoiser, start: Scales, s: Scales) -> list[Tensor]:
        if self.variable == "t" or self.alpha == 1:
            return [TIME.between(denoiser.process, start, s, self.alpha)]
        return [_in_noise_level(start, s, lambda ode: ode.between(denoiser.process, start, s, self.alpha))]

    def _move(self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, nodes: tuple[Scales, ...]) -> Tensor:
        ode = TIME if self.variable == "t" else noise_level_or_straight(t)
        d = denoise(x_t, t)
        if s.floats.sigma == 0:
            return ode.euler(d, s)
        (node,) = nodes
        corrector = denoise(ode.euler(d, node), node)
        weight = 1 / (2 * self.alpha)
        return ode.along([d, corrector], [1 - weight, weight], s)


@SAMPLERS.register("dpm-2", aliases=("k-dpm-2",), special_case_of="dpm-solver-2")
@dataclass(frozen=True)
class DPM2(Churned):
    r"""Midpoint in the noise level, at the geometric mean of both ends, 2 NFE a step. Options are those of EDMHeun.

    Formula: $y_s = y_t + (u_s - u_t)\,\varepsilon(y_m, u_m),\quad u_m = \sqrt{u_t u_s},\ y_m = y_t + (u_m -
        u_t)\,\varepsilon(y_t, u_t)$

    KDPM2 of diffusers and dpm_2 of k-diffusion, after DPM-Solver-2 (Lu et al. 2022) and Algorithm 2 of Karras et
    al. 2022. A step onto sigma = 0 is Euler's, 1 NFE.
    """

    order = 2

    def grid_for(self, process: Process) -> TimeGrid:
        return noise_level_grid(process)

    def _nodes(self, denoiser: Denoiser, start: Scales, s: Scales) -> list[Tensor]:
        process = denoiser.process

        def middle(ode: ODEVariable) -> Tensor:
            if ode is STRAIGHT:
                return ode.between(process, start, s, 0.5)
            return process.time_of((start.log_snr + s.log_snr) / 2)

        return [_in_noise_level(start, s, middle)]

    def _move(self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, nodes: tuple[Scales, ...]) -> Tensor:
        ode = noise_level_or_straight(t)
        d = denoise(x_t, t)
        if s.floats.sigma == 0:
            return ode.euler(d, s)
        (middle,) = nodes
        return ode.along([d, denoise(ode.euler(d, middle), middle)], [0.0, 1.0], s)


def _in_noise_level(start: Scales, s: Scales, time: Callable[[ODEVariable], Tensor]) -> Tensor:
    """(N,) times, by each step's variable; the time of s, unused, where the step is Euler's onto sigma = 0."""
    inside = torch.where(s.sigma == 0, s.time, time(NOISE_LEVEL))
    return torch.where(start.alpha == 0, torch.where(s.sigma == 0, s.time, time(STRAIGHT)), inside)
