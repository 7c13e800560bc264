"""SiT's SDE: a free diffusion coefficient with the flow's velocity. Ma et al. 2024 (SiT), Sections 2.3 and 3.4."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dinit.diffusion import Denoised, Denoiser, Process, Scales
from dinit.diffusion.process import diffusion_squared
from dinit.registry import suggest
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.uniform import Uniform
from dinit.samplers.idle import refuse_idle
from dinit.samplers.points import End
from dinit.samplers.sde.ddpm import ancestral_transition

Method = Literal["euler-maruyama", "heun"]
LastStep = Literal["mean", "euler", "tweedie", "none"]
PUBLISHED_LAST = 0.04  # SiT's last_step_size: the time from which the last step goes to 0

# Half the squared diffusion coefficient, w of (norm, scales). SiT's time runs from noise to data: it is 1 - t.
DIFFUSIONS: dict[str, Callable[[float, Scales], Tensor]] = {
    "constant": lambda norm, k: norm * torch.ones_like(k.time),
    "sigma": lambda norm, k: norm * k.sigma,
    "linear": lambda norm, k: norm * k.time,
    "decreasing": lambda norm, k: (norm * torch.cos(math.pi * (1 - k.time)) + 1) ** 2 / 4,
    "increasing-decreasing": lambda norm, k: norm * torch.sin(math.pi * k.time) ** 2,
    "sbdm": lambda norm, k: norm * diffusion_squared(k) / 2,
}


@SAMPLERS.register("flow-sde", aliases={"sit-sde": {"method": "euler-maruyama", "last_step": "mean"}})
@dataclass(frozen=True)
class FlowSDE(Sampler):
    r"""SiT's reverse-time SDE dx = (velocity - w score) dt + sqrt(2 w) dw, with any w >= 0. Ma et al. 2024.

    Formula: $x_s = \hat x + \tfrac{1}{2}(s - t)\left(b(\hat x, t) + b(\hat x + (s - t)\,b(\hat x, t),\,
        s)\right),\quad \hat x = x_t + \sqrt{2 w_t (t - s)}\, z,\quad b = v - w\,\nabla\log p$

    Whatever w is, the marginals are the path's; at w = 0 this is the flow, and at w = g² / 2, 'sbdm' with norm 1,
    the reverse-time SDE of Song et al. 2021. It runs on any process, and is stable where w Δt < 2 sigma². 'sit-sde'
    is SiT's program: Euler-Maruyama on even times from t = 1 to 0.04, 250 of them, and from there the step 'mean'
    to t = 0. Source: arXiv:2401.08740.

    Args:
        diffusion: w in the process's t, with n for the norm. 'constant': n; 'sigma': n sigma; 'linear': n t;
            'decreasing': (1 - n cos(pi t))² / 4; 'increasing-decreasing': n sin²(pi t); 'sbdm': n g² / 2, which is
            infinite at alpha = 0: there an ancestral step is taken.
        norm: Size of the diffusion coefficient, at least 0.
        method: 'heun' (the formula) adds the noise first and then takes a deterministic Heun step, 2 NFE;
            'euler-maruyama', SiT's default, needs many more steps for the same accuracy.
        last_step: The step onto sigma = 0, which a run with this option ends with (end = 'clean'): 'mean' has the
            SDE's drift without noise, 'euler' is the flow's Euler step, 'tweedie' the posterior mean, 'none' a step
            like any other. From a usual grid the first three start at t = 0.04, SiT's last_step_size; another is
            the grid's `last`: 'uniform:last=0.02'. None ends with the posterior mean, or, where the call's end is
            another, as 'mean'.

    Raises:
        ValueError: An option out of its range; from a run, a last_step where no step onto sigma = 0 is taken, and
            Heun's method where the score or the velocity at its end is infinite.
    """

    diffusion: str = "sigma"
    norm: float = 1.0
    method: Method = "heun"
    last_step: LastStep | None = None

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("diffusion", self.diffusion, list(DIFFUSIONS)),
            ("method", self.method, list(get_args(Method))),
            ("last_step", self.last_step, list(get_args(LastStep))),
        ):
            if name not in known and not (kind == "last_step" and name is None):
                raise ValueError(f"unknown {kind} {name!r}{suggest(str(name), known)}")
        if not self.norm >= 0:
            raise ValueError(f"norm, the size of the diffusion coefficient, must be at least 0, got {self.norm}")

        if self.norm == 0 and self.diffusion != "decreasing":
            refuse_idle(self, ("diffusion",), "at norm = 0", "set norm")

    def claims(self) -> Claims:
        draws = int(self.norm > 0 or self.diffusion == "decreasing")
        if self.method == "euler-maruyama":
            return Claims(draws_per_step=draws)
        # One evaluation from alpha = 0 or onto sigma = 0.
        return Claims(1 if draws else 2, nfe_per_step=2, draws_per_step=draws, cost_depends_on="times")

    def end_for(self, process: Process) -> End:
        return "posterior-mean" if self.last_step is None else "clean"

    def grid_for(self, process: Process) -> TimeGrid:
        usual = super().grid_for(process)
        published = self.last_step not in (None, "none") and isinstance(usual, Uniform)
        return Uniform(last=PUBLISHED_LAST) if published else usual

    def coefficient(self, k: Scales) -> Tensor:
        """w, half the squared diffusion coefficient, at the scales k: float64 of their shape."""
        return DIFFUSIONS[self.diffusion](self.norm, k)

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        onto_clean = points[-1].floats.sigma == 0
        if self.last_step not in (None, "none") and not onto_clean:
            raise ValueError(self._idle(f"which ends at t = {points[-1].floats.time:.3g}, before sigma = 0"))
        if self.method == "heun" and self.last_step == "none" and onto_clean:
            raise ValueError(
                "Heun's step onto sigma = 0 needs the score there, which is infinite: choose another last_step, or "
                "method='euler-maruyama'"
            )
        if self.method == "heun" and not onto_clean and not bool(points[-1].d_sigma.isfinite()):
            raise ValueError(
                f"the velocity at the last time, t = {float(points[-1].time):g}, is infinite: end before it"
            )

    def init(self, denoiser: Denoiser, points: list[Scales], total: int) -> None:
        if self.last_step is not None and total == len(points):
            raise ValueError(self._idle("with end = 'posterior-mean'"))
        _ = self._number(points[0])  # computed for all times here, so that the loop does not

    def _idle(self, run: str) -> str:
        return (
            f"last_step = {self.last_step!r} is the step onto sigma = 0 and does nothing in a run {run}: leave end "
            "out, which is then 'clean', or leave last_step out"
        )

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        if s.floats.sigma == 0 and self.last_step != "none":
            return self._onto_clean(denoise(x_t, t), t, s), None
        if t.floats.alpha == 0 and self.diffusion == "sbdm":
            mean, std = ancestral_transition(denoise(x_t, t), t, s, "fixed-small")
            return mean + std * noise(0, x_t) if self.stochastic else mean, None
        w = self._number(t)
        dt = s.floats.time - t.floats.time
        kick = math.sqrt(-2 * w * dt) * noise(0, x_t) if self.stochastic else 0.0
        if self.method == "euler-maruyama":
            return x_t + dt * _drift(denoise(x_t, t), w) + kick, None
        start = x_t + kick
        slope = _drift(denoise(start, t), w)
        end = denoise(start + dt * slope, s)
        return start + dt * (slope + _drift(end, self._number(s))) / 2, None

    def _number(self, k: Scales) -> float:
        return k.numbers(self, lambda k: (self.coefficient(k),))[0]

    def _onto_clean(self, d: Denoised, t: Scales, s: Scales) -> Tensor:
        if self.last_step == "tweedie" or t.floats.alpha == 0:
            return s.floats.alpha * d.x0
        dt = s.floats.time - t.floats.time
        return d.x_t + dt * (d.velocity if self.last_step == "euler" else _drift(d, self._number(t)))


def _drift(d: Denoised, w: float) -> Tensor:
    """dx/dt of the mean, in the process's t, which falls along a run."""
    return d.velocity - w * d.score
