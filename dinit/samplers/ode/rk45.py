"""RK45: Runge–Kutta with step sizes chosen by an error estimate. Dormand & Prince 1980; Hairer et al. 1993.

Adaptive samplers alone read a number back to the host at every trial step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dinit.devices import upload
from dinit.diffusion import Denoiser, Scales
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.ode.runge_kutta import Tableau, check_finite_velocity, combined

DORMAND_PRINCE = Tableau(
    nodes=(1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1),
    stages=(
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    weights=(35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0),
    order=5,
)
FOURTH_ORDER = (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
DIFFERENCE = tuple(b - c for b, c in zip(DORMAND_PRINCE.weights, FOURTH_ORDER, strict=True))

SAFETY, SLOWEST, FASTEST = 0.9, 0.2, 5.0  # Hairer, Nørsett & Wanner 1993, Section II.4
INTEGRAL, PROPORTIONAL = 0.7 / 5, 0.4 / 5  # Gustafsson 1991, for an estimate of order 4
SMALLEST, MOST_TRIALS = 1e-10, 2000  # shorter steps, or more between two grid times, mean a hopeless tolerance


class Controller(NamedTuple):
    """State of the step-size controller, for every sample.

    Attributes:
        size: (B,), of the step to try, in t.
        error: (B,), of the last accepted step, over the tolerance.
    """

    size: Tensor
    error: Tensor


@SAMPLERS.register("rk45", aliases=("dopri5", "dormand-prince"))
@dataclass(frozen=True)
class RK45(Sampler):
    r"""Dormand–Prince 5(4) on the probability-flow ODE in t, with adaptive steps. Song et al. 2021 (score SDE).

    Formula: $x_s = x_t + \sum_n h_n \sum_i b_i v_{n,i},\quad h_n \text{ from the error } h_n \left\|\sum_i (b_i -
        b_i^*) v_{n,i}\right\|$

    Between two grid times it takes as many steps as the tolerances need, and never evaluates outside them; a grid
    of two times leaves it free between them. A trial is accepted where the root mean square over the sample of
    error / (atol + rtol max(|x_t|, |x_s|)) is at most 1, and a PI controller chooses the next size. Every sample
    has step sizes of its own, so that an image does not depend on its batch, and no evaluation is made beyond the
    last time; torchdiffeq's dopri5 has one size for the batch, evaluates beyond it and interpolates back. The batch
    is evaluated until its slowest sample arrives.

    Evaluations are 6 a trial and 1 a grid interval; a trial's errors are read back from the device once. The
    claimed NFE a step is a lower bound; `Step.nfe` counts. The claimed order is that of single steps between the
    times of a fine grid. Tolerances that cannot be met end the
    run with a RuntimeError. Source: arXiv:2011.13456, Section 4.3, whose tolerances are the defaults.

    Args:
        rtol: Relative tolerance, positive.
        atol: Absolute tolerance, positive, in units of x.

    Raises:
        ValueError: A tolerance that is not positive.
    """

    rtol: float = 1e-5
    atol: float = 1e-5

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol and atol must be positive, got rtol = {self.rtol}, atol = {self.atol}")

    def claims(self) -> Claims:
        return Claims(order=5, nfe_per_step=7, cost_depends_on="state")

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        check_finite_velocity(self, denoiser, points)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Controller | None, noise: StepNoise
    ) -> tuple[Tensor, Controller]:
        now, x, slope = t.time.expand(len(x_t)), x_t, denoise(x_t, t).velocity
        control = state or Controller(now - s.time, torch.ones_like(now))
        rejected = torch.zeros(len(x_t), dtype=torch.bool)
        for _ in range(MOST_TRIALS):
            if not bool((now > s.time).any()):
                return x, control
            left = now - s.time
            size = torch.minimum(control.size, left)
            target = torch.where(size == left, s.time, now - size)
            trial, last_slope, error = self._trial(denoise, x, slope, now, target)
            accepted = error <= 1  # not where it is not a number
            if bool((size[~accepted] < SMALLEST).any()):
                break
            x, slope = (
                torch.where(like_batch(accepted, x), new, old) for new, old in ((trial, x), (last_slope, slope))
            )
            now = torch.where(accepted, target, now)
            control = _next(control, size, error, accepted, rejected)
            rejected = ~accepted
        raise RuntimeError(
            f"{self} cannot meet its tolerances at t = {float(now.max()):g}: loosen rtol and atol, run in float64, "
            "or see whether the network returns finite numbers there"
        )

    def _trial(
        self, denoise: StepDenoiser, x: Tensor, slope: Tensor, now: Tensor, target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step from `now` to `target`: the new state, its velocity, and (B,) errors over the tolerance."""
        size = now - target
        slopes, h, moved = [slope], like_batch(size, x), x
        for node, row in zip(DORMAND_PRINCE.nodes, DORMAND_PRINCE.stages, strict=True):
            moved = x - h * combined(row, slopes)
            slopes.append(denoise(moved, denoise.scales(target if node == 1 else now - node * size)).velocity)
        # The last stage is evaluated at the result: its row is the weights.
        allowed = self.atol + self.rtol * torch.maximum(x.abs(), moved.abs())
        ratio = (h * combined(DIFFERENCE, slopes) / allowed).flatten(1)
        return moved, slopes[-1], ratio.square().mean(1).sqrt().double().cpu()


def _next(control: Controller, size: Tensor, error: Tensor, accepted: Tensor, rejected: Tensor) -> Controller:
    """The sizes to try after steps of `size`. rejected: samples whose trial before this one was rejected."""
    factor = SAFETY * error.clamp(min=1e-10) ** -INTEGRAL * control.error**PROPORTIONAL
    grown = size * torch.where(rejected, factor.clamp(SLOWEST, 1.0), factor.clamp(SLOWEST, FASTEST))
    # A step that the grid cut short is no reason to shorten the next one.
    grown = torch.where(size < control.size, torch.maximum(grown, control.size), grown)
    shrunk = size * (SAFETY * error**-0.2).nan_to_num(0.0).clamp(min=SLOWEST)
    last = torch.where(accepted, error.clamp(min=1e-4), control.error)
    arrived = size == 0  # and waiting for slower samples, which must not change what comes next for this one
    return Controller(
        torch.where(arrived, control.size, torch.where(accepted, grown, shrunk)),
        torch.where(arrived, control.error, last),
    )


def like_batch(values: Tensor, x: Tensor) -> Tensor:
    """(B,) values on the CPU in a form that broadcasts against x; times and sizes in x's dtype."""
    dtype = values.dtype if values.dtype == torch.bool else x.dtype
    return upload(values, x.device, dtype).reshape(-1, *(1,) * (x.ndim - 1))
