"""Predictor-corrector loop of score_sde, as its published code runs it, for comparison with recorded runs.

dinit itself has `PredictorCorrector` in its place: the published Langevin step averages norms over the batch, so
that an image depends on its neighbours, and the published time step is 1/N, whatever the grid is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from dinit.diffusion import Denoised, Denoiser, Process, Scales
from dinit.diffusion.continuous import VE, VP, SubVP
from dinit.diffusion.process import diffusion_squared
from dinit.samplers.base import Claims, Sampler, StepDenoiser, StepNoise


@dataclass(frozen=True)
class ScoreSDE(Sampler):
    """Published loop: corrector, then predictor, at each of N times from 1 to eps, with a step of 1/N.

    Run it as `sampler.sample(denoiser, noise, grid=sampler.times(), end="state")`.

    Args:
        process: The denoiser's process.
        num_scales: N, the number of times.
        predictor: 'ancestral' is not for SubVP.
        corrector: 'none' on SubVP, which has no table of alphas.
        snr: Signal-to-noise ratio of a Langevin move.
        corrector_steps: Langevin moves at each time.
        denoise: Whether the last state is the predictor's mean, without noise.
        probability_flow: Whether the predictor solves the probability-flow ODE in place of the SDE.
        chain: The levels of a network that was trained on the discrete chain, at the N times; None: the process's.

    Raises:
        ValueError: A pairing that the published code does not have.
    """

    process: VP | SubVP | VE
    num_scales: int = 1000
    predictor: Literal["reverse-diffusion", "ancestral", "euler-maruyama", "none"] = "reverse-diffusion"
    corrector: Literal["langevin", "annealed", "none"] = "langevin"
    snr: float = 0.16
    corrector_steps: int = 1
    denoise: bool = True
    probability_flow: bool = False
    chain: Process | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.process, VP | SubVP | VE):
            raise ValueError(f"the published loop runs on VP, SubVP and VE, not on {self.process}")
        if isinstance(self.process, SubVP) and self.corrector != "none":
            raise ValueError("the published code has no corrector for SubVP: use corrector='none'")
        if self.predictor == "ancestral" and isinstance(self.process, SubVP):
            raise ValueError("the ancestral predictor is VE's and VP's, not SubVP's")

    def claims(self) -> Claims:
        count = self._moves + (self.predictor != "none")
        return Claims(nfe_per_step=count, draws_per_step=count)

    @property
    def _moves(self) -> int:
        return self.corrector_steps if self.corrector != "none" else 0

    def times(self, eps: float = 1e-3) -> Tensor:
        """The N times from 1 to eps, and 0, where the last step ends."""
        return torch.cat([torch.linspace(1, eps, self.num_scales, dtype=torch.float64), torch.zeros(1).double()])

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        if denoiser.process is not self.chain and denoiser.process != self.process:
            raise ValueError(f"this sampler is for {self.process}, the denoiser's process is {denoiser.process}")
        if len(points) != self.num_scales + 1 or points[-1].floats.time != 0:
            raise ValueError('the published loop has its own times: pass grid=sampler.times() and end="state"')

    @cached_property
    def _table(self) -> Tensor:
        """beta of VP's discrete chain, or sigma of VE's, (N,)."""
        n, p = self.num_scales, self.process
        if isinstance(p, VE):
            return torch.linspace(math.log(p.sigma_min), math.log(p.sigma_max), n, dtype=torch.float64).exp()
        return torch.linspace(p.beta_min / n, p.beta_max / n, n, dtype=torch.float64)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        x = x_t
        index = int(t.floats.time * (self.num_scales - 1))
        for j in range(self._moves):
            score, z = denoise(x, t).score, noise(j, x)
            size = self._langevin_size(score, z, t, index)
            x = x + size * score + (2 * size).sqrt() * z
        if self.predictor == "none":
            return x, None
        mean, variance = self._predict(denoise(x, t), t, index)
        if self.denoise and s.floats.time == 0:
            return mean, None
        return mean + variance.sqrt() * noise(self._moves, x), None

    def _langevin_size(self, score: Tensor, z: Tensor, t: Scales, index: int) -> Tensor:
        alpha = 1 - self._table[index] if isinstance(self.process, VP) else torch.ones_like(t.time)
        if self.corrector == "annealed":
            return 2 * alpha * (self.snr * self.process.scales(t.time).sigma) ** 2
        norms = [v.flatten(1).norm(dim=1).mean() for v in (z, score)]
        return 2 * alpha * (self.snr * norms[0] / norms[1]) ** 2

    def _predict(self, d: Denoised, t: Scales, index: int) -> tuple[Tensor, Tensor]:
        """Mean and variance of the next state."""
        drift, variance = self._forward(self.process.scales(t.time), index)
        if self.predictor == "ancestral":
            if isinstance(self.process, VP):
                beta = self._table[index]
                return (d.x_t + beta * d.score) / (1 - beta).sqrt(), beta
            return d.x_t + variance * d.score, variance * (1 - variance / self._table[index] ** 2)
        if self.probability_flow:
            return (1 - drift) * d.x_t + variance / 2 * d.score, torch.zeros_like(variance)
        return (1 - drift) * d.x_t + variance * d.score, variance

    def _forward(self, t: Scales, index: int) -> tuple[Tensor, Tensor]:
        """The forward step's drift, as a factor on x, and its variance."""
        if self.predictor == "euler-maruyama" or isinstance(self.process, SubVP):
            return t.d_alpha / t.alpha / self.num_scales, diffusion_squared(t) / self.num_scales
        value = self._table[index]
        if isinstance(self.process, VP):
            return (1 - value).sqrt() - 1, value
        before = self._table[index - 1] if index else torch.zeros_like(value)
        return torch.zeros_like(value), value**2 - before**2
