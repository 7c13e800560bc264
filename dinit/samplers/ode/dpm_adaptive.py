"""DPM-Solver with adaptive steps in log-SNR. Lu et al. 2022 (DPM-Solver), Appendix C; Söderlind & Wang 2006."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dinit.diffusion import Denoiser, Process, Scales
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.ode.rk45 import MOST_TRIALS, SMALLEST, like_batch

NEAR_NOISE = 0.999  # where a run from alpha = 0, whose log-SNR has no first value, begins to count it
FLOOR = 1e-8  # of an error, so that its inverse is finite


class Controller(NamedTuple):
    """State of the step-size controller, for every sample.

    Attributes:
        size: (B,), of the step to try, in half the log-SNR.
        inverse: 1 / error of the last two accepted steps, the latest first, each (B,); NaN where there is none.
        low: (B, C, H, W), the lower-order solution at the present state.
    """

    size: Tensor
    inverse: tuple[Tensor, Tensor]
    low: Tensor


@SAMPLERS.register("dpm-adaptive", aliases=("k-dpm-adaptive",))
@dataclass(frozen=True)
class DPMAdaptive(Sampler):
    r"""DPM-Solver-12 or -23 with adaptive steps. Lu et al. 2022 (DPM-Solver), Appendix C; arXiv:2206.00927.

    Formula: $x_s^{(2)},\, x_s^{(3)} \text{ of DPM-Solver-2 and -3},\quad E = \left\|\frac{x_s^{(3)} -
        x_s^{(2)}}{\max(a,\, r\,|x|)}\right\|,\quad h \leftarrow h\,(1 + \arctan(E^{-1/3} - 1))$

    A step in half the log-SNR is taken by the pair's two solvers from the same evaluations. Their difference over
    max(atol, rtol max(|x_low|, |x_low before|)), as root mean square over the sample, is its error E. A controller
    makes a factor of it: E^(-integral / q), q the higher order, for the paper's, with the further terms of a PID
    controller where `proportional` or `derivative` is not 0, and softly limited (Söderlind & Wang 2006). A step is
    accepted where the factor is at least `accept`, and the next is longer by the factor. Defaults: k-diffusion's.

    Between two grid times it takes as many steps as the tolerances need; a grid of two times leaves it free between
    them. Every sample has steps of its own, where k-diffusion has one size for a batch, so that an image does not
    depend on its neighbours; the batch is evaluated until its slowest sample arrives. A run from alpha = 0 begins
    with a step of DDIM to t = 0.999. The claimed NFE a step is that of one trial, a lower bound; `Step.nfe` counts;
    a trial's errors are read back from the device once. A run that ends at sigma = 0, where the log-SNR is
    infinite, is refused with a ValueError; tolerances that cannot be met end it with a RuntimeError.

    Args:
        solver: 12 or 23, the orders of the pair.
        rtol: Relative tolerance, positive.
        atol: Absolute tolerance, positive, in units of x.
        first: Size of the first step to try, positive, in half the log-SNR.
        proportional: Coefficient of the controller's proportional term.
        integral: Coefficient of its integral term.
        derivative: Coefficient of its derivative term. The three sum to more than 0.
        accept: The smallest factor of an accepted step, in (0, 1).

    Raises:
        ValueError: A setting out of its range.
    """

    solver: Literal[12, 23] = 23
    rtol: float = 0.05
    atol: float = 0.0078
    first: float = 0.05
    proportional: float = 0.0
    integral: float = 1.0
    derivative: float = 0.0
    accept: float = 0.81

    def __post_init__(self) -> None:
        if self.solver not in (12, 23):
            raise ValueError(f"solver must be 12 or 23, the orders of its pair, got {self.solver!r}")
        for name in ("rtol", "atol", "first"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"dpm-adaptive: {name} must be positive, got {getattr(self, name)}")
        if not self.proportional + self.integral + self.derivative > 0:
            raise ValueError(
                "the controller's coefficients must add up to more than 0, or no error would shorten a step; got "
                f"{self.proportional}, {self.integral} and {self.derivative}"
            )
        if not 0 < self.accept < 1:
            raise ValueError(f"accept, the smallest factor of an accepted step, is in (0, 1), got {self.accept}")

    def claims(self) -> Claims:
        return Claims(self._order, nfe_per_step=self._order, cost_depends_on="state")

    @property
    def _order(self) -> int:
        """Of the higher-order solver of the pair, which is also its evaluations."""
        return self.solver % 10

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        if len(points) > 1 and points[-1].floats.sigma == 0:
            raise ValueError(
                "dpm-adaptive steps in log-SNR, which is infinite at sigma = 0, where this run ends: end with "
                "'posterior-mean', or at a later time"
            )

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        return torch.where(t.alpha > 0, t.time, s.time.clamp(min=min(NEAR_NOISE, denoiser.t_max)))[:, None]

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Controller | None, noise: StepNoise
    ) -> tuple[Tensor, Controller]:
        (start,) = denoise.inner
        x = x_t
        if t.floats.alpha == 0:
            d = denoise(x_t, t)
            x = start.alpha * d.x0 + start.sigma * d.eps
        now, end = (k.log_snr.expand(len(x)) / 2 for k in (start, s))
        unknown = torch.full_like(now, torch.nan)
        control = state or Controller(torch.full_like(now, self.first), (unknown, unknown), x)
        eps = None
        for _ in range(MOST_TRIALS):
            moving = now < end
            if not bool(moving.any()):
                return x, control
            size = torch.minimum(control.size, end - now)
            target = torch.where(size == end - now, end, now + size)
            nodes = self._nodes(denoise.process, now, target, start, s)
            eps = denoise(x, nodes[0]).eps if eps is None else eps
            high, low = self._solve(denoise, x, eps, target - now, nodes)
            inverse = self._inverse_error(high, low, control.low)
            control, accepted = self._controlled(control, size, inverse, moving)
            if bool((control.size < SMALLEST).any()):
                break
            chosen = like_batch(accepted, x)
            x = torch.where(chosen, high, x)
            control = control._replace(low=torch.where(chosen, low, control.low))
            now = torch.where(accepted, target, now)
            eps = None if bool(accepted.any()) else eps
        raise RuntimeError(
            f"{self} cannot meet its tolerances at a log-SNR of {2 * float(now.min()):g}: loosen rtol and atol, or "
            "see whether the network returns finite numbers there"
        )

    def _nodes(self, process: Process, now: Tensor, target: Tensor, start: Scales, s: Scales) -> tuple[Scales, ...]:
        """The scales at a trial's start, at its 1 or 2 inner evaluations and at its end, each of (B,) times."""
        at = torch.stack([now + (target - now) * k / self._order for k in range(self._order)] + [target])
        times = process.time_of(2 * at).clamp(s.floats.time, start.floats.time)  # rounding may lead out of the step
        return tuple(process.scales(times).unbind())

    def _solve(
        self, denoise: StepDenoiser, x: Tensor, eps: Tensor, h: Tensor, nodes: tuple[Scales, ...]
    ) -> tuple[Tensor, Tensor]:
        """Both orders' x at the last node, h further in half the log-SNR. Lu et al. 2022, Algorithms 1 and 2."""
        here, *inner, s = nodes
        r = 1 / self._order

        def linear(k: Scales, slope: Tensor) -> Tensor:
            keep = k.alpha / here.alpha
            return like_batch(keep, x) * x + like_batch(k.sigma - keep * here.sigma, x) * slope

        def bend(k: Scales, u: Tensor) -> Tensor:
            """The weight of a slope in half the log-SNR, u of which is gone through: -sigma (expm1(u) / u - 1)."""
            return like_batch(-k.sigma * torch.where(u > 0, torch.expm1(u) / u - 1, torch.zeros_like(u)), x)

        change = denoise(linear(inner[0], eps), inner[0]).eps - eps
        second = linear(s, eps + change / (2 * r))
        if self.solver == 12:
            return second, linear(s, eps)
        late = linear(inner[1], eps) + 2 * bend(inner[1], 2 * r * h) * change
        return linear(s, eps) + bend(s, h) / (2 * r) * (denoise(late, inner[1]).eps - eps), second

    def _inverse_error(self, high: Tensor, low: Tensor, low_before: Tensor) -> Tensor:
        """(B,) float64 on the CPU: 1 / E, finite where E is 0."""
        allowed = (self.rtol * torch.maximum(low.abs(), low_before.abs())).clamp(min=self.atol)
        return 1 / (((low - high) / allowed).flatten(1).square().mean(1).sqrt().double().cpu() + FLOOR)

    def _controlled(
        self, control: Controller, size: Tensor, inverse: Tensor, moving: Tensor
    ) -> tuple[Controller, Tensor]:
        """The controller after trials of `size`, and (B,) whether they are accepted."""
        before, earlier = (torch.where(old.isnan(), inverse, old) for old in control.inverse)
        p, i, d = (v / self._order for v in (self.proportional, self.integral, self.derivative))
        raw = inverse ** (p + i + d) * before ** -(p + 2 * d) * earlier**d
        factor = (1 + torch.atan(raw - 1)).nan_to_num(0.5)
        accepted = moving & (factor >= self.accept) & raw.isfinite()
        # A step that the grid cut short is no reason to shorten the next one.
        grown = torch.where(size < control.size, (size * factor).maximum(control.size), size * factor)
        tried = torch.where(accepted, grown, size * factor)
        return Controller(
            torch.where(moving, tried, control.size),
            (torch.where(accepted, inverse, before), torch.where(accepted, before, earlier)),
            control.low,
        ), accepted
