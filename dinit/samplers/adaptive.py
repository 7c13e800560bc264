"""The adaptive solver: step sizes chosen by an error estimate. Dormand & Prince 1980; Hairer et al. 1993.

It is the one kind of sampler that reads a number back to the host at every trial step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dinit.diffusion import Denoiser, Scales
from dinit.samplers.base import SAMPLERS, Denoise, Sampler, StepNoise
from dinit.samplers.runge_kutta import Tableau, check_finite_velocity, combined

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
)
FOURTH_ORDER = (5179 / 57600, 0, 7571 / 16695, 393 / 640, -92097 / 339200, 187 / 2100, 1 / 40)
DIFFERENCE = tuple(b - c for b, c in zip(DORMAND_PRINCE.weights, FOURTH_ORDER, strict=True))

SAFETY, SLOWEST, FASTEST = 0.9, 0.2, 5.0  # Hairer, Nørsett & Wanner 1993, Section II.4
INTEGRAL, PROPORTIONAL = 0.7 / 5, 0.4 / 5  # Gustafsson 1991, for an estimate of order 4
SMALLEST = 1e-10  # of [0, 1]: shorter steps mean that the tolerance cannot be met


class Controller(NamedTuple):
    """What one step hands to the next: the size to try, and the last accepted error."""

    size: float
    error: float


@SAMPLERS.register("rk45")
@dataclass(frozen=True)
class RK45(Sampler):
    """Dormand–Prince 5(4) on the probability-flow ODE in t, with adaptive steps. Song et al. 2021, Section 4.3.

    Between two grid times it takes as many steps as the tolerances ask for, and never evaluates outside them;
    with a grid of two times the solver is free between them. A trial is accepted where the largest, over the
    batch, root mean square of error / (atol + rtol max(|x_t|, |x_s|)) is at most 1; so the steps, though to a
    tolerance only, depend on the batch. A PI controller chooses the next size.
    order: what single steps between the times of a fine grid show. nfe is the least; the steps tell the truth.
    Evaluations are 6 a trial step and 1 for each grid interval. The defaults are score_sde's.
    ValueError for tolerances that are not positive, RuntimeError where they cannot be met.
    """

    rtol: float = 1e-5
    atol: float = 1e-5

    order = 5
    nfe_per_step = 7
    cost_depends_on = "state"

    def __post_init__(self) -> None:
        if not (self.rtol > 0 and self.atol > 0):
            raise ValueError(f"rtol and atol must be positive, got rtol = {self.rtol}, atol = {self.atol}")

    def check(self, denoiser: Denoiser, grid: list[Scales]) -> None:
        check_finite_velocity(self, denoiser, grid)

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Scales, s: Scales, state: Controller | None, noise: StepNoise
    ) -> tuple[Tensor, Controller]:
        now, end = t.numbers.t, s.numbers.t
        size, before = state or Controller(now - end, 1.0)
        x, slope = x_t, denoise(x_t, t).velocity
        rejected = False
        while now > end:
            step = min(size, now - end)
            target = s if step == now - end else denoise.scales(torch.tensor(now - step, dtype=torch.float64))
            trial, last_slope, error = self._trial(denoise, x, slope, now, target, step)
            if error <= 1:
                x, slope, now = trial, last_slope, end if target is s else now - step
                factor = SAFETY * max(error, 1e-10) ** -INTEGRAL * before**PROPORTIONAL
                grown = step * min(max(factor, SLOWEST), 1.0 if rejected else FASTEST)
                # A step cut short by the grid says nothing against the size that was to be tried.
                size, before, rejected = max(grown, size if step < size else 0.0), max(error, 1e-4), False
            else:  # also where it is not a number
                size, rejected = step * max(SAFETY * error**-0.2 if error < 1e10 else 0.0, SLOWEST), True
                if size < SMALLEST:
                    raise RuntimeError(
                        f"{self} cannot meet its tolerances at t = {now:g}: loosen rtol and atol, run in float64, "
                        "or see whether the network returns finite numbers there"
                    )
        return x, Controller(size, before)

    def _trial(
        self, denoise: Denoise, x: Tensor, slope: Tensor, now: float, target: Scales, step: float
    ) -> tuple[Tensor, Tensor, float]:
        """One step of Dormand–Prince from `now`: the new state, its velocity, and the error over the tolerance."""
        slopes, moved = [slope], x
        for node, row in zip(DORMAND_PRINCE.nodes, DORMAND_PRINCE.stages, strict=True):
            time = torch.tensor(now - node * step, dtype=torch.float64)
            moved = x - step * combined(row, slopes)
            slopes.append(denoise(moved, target if node == 1 else denoise.scales(time)).velocity)
        # The last stage stands at the result: its row is the weights.
        allowed = self.atol + self.rtol * torch.maximum(x.abs(), moved.abs())
        ratio = (step * combined(DIFFERENCE, slopes) / allowed).flatten(1)
        return moved, slopes[-1], float(ratio.square().mean(1).max().sqrt())
