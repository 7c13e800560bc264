"""Ancestral sampling: a solver to below the noise level of s, then noise up to it. Song et al. 2021 (DDIM)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from dinit.diffusion import Denoised, Denoiser, Scales
from dinit.diffusion.denoised import weighted
from dinit.diffusion.process import ScalarScales
from dinit.registry import suggest
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.idle import refuse_idle

Solver = Literal["euler", "dpm-2", "dpmpp-2s"]


@SAMPLERS.register(
    "ancestral",
    aliases={
        "euler-a": {},
        "euler-ancestral": {},
        "k-euler-a": {},
        "k-euler-ancestral": {},
        "dpm2-a": {"solver": "dpm-2"},
        "dpm2-ancestral": {"solver": "dpm-2"},
        "kdpm2-ancestral": {"solver": "dpm-2"},
        "dpmpp-2s-a": {"solver": "dpmpp-2s"},
        "dpmpp-2s-ancestral": {"solver": "dpmpp-2s"},
    },
)
@dataclass(frozen=True)
class Ancestral(Sampler):
    r"""Ancestral sampling with eta and s_noise, known as Euler ancestral. Song et al. 2021 (DDIM), Eq. 16.

    Formula: $y_s = y_t + (u_{down} - u_t)\,\varepsilon + u_{up}\, z,\quad u_{up} = \min\left(u_s,\ \eta\, u_s
        \sqrt{1 - u_s^2 / u_t^2}\right),\quad u_{down}^2 + u_{up}^2 = u_s^2$

    y = x / alpha and u = sigma / alpha: a solver goes from u_t to u_down, and noise of standard deviation u_up
    leads back to u_s. It runs on any process: with 'euler' it is DDIM(eta), and with eta = 1 DDPM, which on VE is
    score_sde's ancestral sampling. Source: arXiv:2010.02502.

    Args:
        eta: At least 0, which is deterministic; above 1 more noise is exchanged than in DDPM, and inf draws all of
            it again at every step.
        s_noise: Factor on the noise, positive.
        solver: 'euler' (the formula); 'dpm-2' (Karras et al. 2022, the midpoint rule in u, evaluated halfway in
            log u) or 'dpmpp-2s' (Lu et al. 2022, the midpoint rule in log u). The last two are of second order at
            eta = 0 and take two evaluations a step, but one where a step has no middle: from alpha = 0 or to
            u_down = 0.

    Raises:
        ValueError: eta, s_noise or solver out of its range.
    """

    unlimited_options: ClassVar = ("eta",)

    eta: float = 1.0
    s_noise: float = 1.0
    solver: Solver = "euler"

    def __post_init__(self) -> None:
        check_noise(self)
        if self.solver not in get_args(Solver):
            raise ValueError(f"unknown solver {self.solver!r}{suggest(str(self.solver), list(get_args(Solver)))}")

    def claims(self) -> Claims:
        draws = int(self.eta > 0)
        if self.solver == "euler":
            return Claims(draws_per_step=draws)
        return Claims(1 if draws else 2, nfe_per_step=2, draws_per_step=draws, cost_depends_on="times")

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        if self.solver == "euler":
            return torch.empty(len(t.time), 0, dtype=torch.float64)
        down = [
            ancestral_split(a.floats, b.floats, self.eta)[0] for a, b in zip(t.unbind(), s.unbind(), strict=True)
        ]
        noise_level = (t.noise_level * torch.tensor(down, dtype=torch.float64) / s.alpha).sqrt()
        middle = noise_level.isfinite() & (noise_level > 0)  # elsewhere the step is Euler's, and any time will do
        times = denoiser.process.time_of_noise_level(torch.where(middle, noise_level, torch.ones_like(noise_level)))
        return torch.where(middle, times, s.time)[:, None]

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        d = denoise(x_t, t)
        down, up = ancestral_split(t.floats, s.floats, self.eta)
        if self.solver == "euler" or t.floats.alpha == 0 or down == 0:
            x_s = d.combination(0.0, s.floats.alpha, down)
        else:
            x_s = self._second_order(denoise, d, t.floats, s.floats, down)
        if up > 0:
            x_s = weighted(1.0, x_s, self.s_noise * up, noise(0, x_t))
        return x_s, None

    def _second_order(
        self, denoise: StepDenoiser, d: Denoised, t: ScalarScales, s: ScalarScales, down: float
    ) -> Tensor:
        """The step to the noise level down / alpha_s, in units of x at s."""
        mid = denoise.inner[0]
        middle = denoise(d.combination(0.0, mid.floats.alpha, mid.floats.sigma), mid)
        if self.solver == "dpm-2":  # dy / du = eps
            moved = down - s.alpha * t.sigma / t.alpha
            return weighted(s.alpha / t.alpha, d.x_t, moved, middle.eps)
        keep = down / t.sigma
        return weighted(keep, d.x_t, s.alpha - keep * t.alpha, middle.x0)


def ancestral_split(t: ScalarScales, s: ScalarScales, eta: float) -> tuple[float, float]:
    """Old and new noise at the end of an ancestral step.

    Args:
        t: Start of the step.
        s: End of the step.
        eta: As of `Ancestral`.

    Returns:
        alpha_s u_down, what is left of the old noise at s, and alpha_s u_up, what is new; both in units of x.
    """
    ratio = t.alpha / t.sigma * s.sigma / s.alpha  # u_s / u_t
    up = min(1.0, eta * math.sqrt(1 - ratio**2)) if eta else 0.0
    down = ratio if eta == 1 else math.sqrt(1 - up**2)  # exact where the root would cancel
    return s.sigma * down, s.sigma * up


def check_noise(sampler: Any) -> None:
    """Raise a ValueError unless eta >= 0 and s_noise > 0, and for an s_noise without noise, at eta = 0."""
    eta, s_noise = sampler.eta, getattr(sampler, "s_noise", 1.0)
    if not eta >= 0:
        raise ValueError(f"eta must be at least 0 (0 is deterministic, 1 is the reverse-time SDE), got {eta}")
    if not s_noise > 0:
        raise ValueError(f"s_noise, a factor on the noise, must be positive, got {s_noise}")
    if eta == 0 and s_noise != 1:
        refuse_idle(sampler, ("s_noise",), "at eta = 0, where no noise is added", "set eta")
