"""Annealed Langevin dynamics on the exact likelihood: the slow reference. Song & Ermon 2019; Jalal et al. 2021."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.diffusion import Scales
from dinit.inverse.measurement import Measurement
from dinit.inverse.samplers.base import POSTERIOR_SAMPLERS, PosteriorSampler
from dinit.inverse.samplers.likelihood import squared_norm, wide_data_gradient
from dinit.samplers.base import Claims, StepDenoiser, StepNoise


@POSTERIOR_SAMPLERS.register("mcmc")
@dataclass(frozen=True)
class MCMC(PosteriorSampler):
    """Annealed Langevin dynamics on the score and the likelihood of y, which is exact as the noise falls.

    At every time of the grid it takes Langevin steps on p_t(x_t) times N(y; A x_t / alpha, sigma_y^2 + sigma^2 /
    alpha^2 A A*), which at the last time is nearly the posterior itself, and then one along the probability-flow
    ODE. With many small steps it is exact, at the cost of its evaluations: a reference for the others. For an
    operator that is not linear ||A|| stands for A.

    Source: Song & Ermon 2019 (arXiv:1907.05600), Algorithm 1; Jalal et al. 2021 (arXiv:2108.01368), Eq. 3.

    Args:
        measurement: What the images are known by; any differentiable operator. None for nothing.
        iterations: Langevin steps at each time, at least 1, of one evaluation each.
        step_size: In units of the largest step that is stable, in (0, 1].

    Raises:
        ValueError: An option out of its range.
    """

    iterations: int = 20
    step_size: float = 0.1

    linear_only = False

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if not 0 < self.step_size <= 1:
            raise ValueError(f"step_size is a share of the largest stable step, in (0, 1], got {self.step_size}")

    def claims(self) -> Claims:
        return Claims(nfe_per_step=self.iterations + 1, draws_per_step=self.iterations)

    def nfe(self, steps: int) -> int:
        return steps * (self.iterations + 1)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: None, noise: StepNoise
    ) -> tuple[Tensor, None]:
        d = denoise(self._langevin(denoise, x_t, t, self.fitted(x_t), noise), t)
        return d.combination(0.0, s.floats.alpha, s.floats.sigma), None  # along the probability-flow ODE

    def finish(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, state: None, noise: StepNoise
    ) -> tuple[Tensor, None]:
        return denoise(self._langevin(denoise, x_t, t, self.fitted(x_t), noise), t).x0, None

    def _langevin(
        self, denoise: StepDenoiser, x: Tensor, t: Scales, measurement: Measurement | None, noise: StepNoise
    ) -> Tensor:
        """The state after the steps at the time of t, (B, C, H, W)."""
        alpha, sigma = t.floats.alpha, t.floats.sigma
        spread = (sigma / alpha) ** 2 if alpha > 0 else 0.0
        curvature = torch.full((), 1 / sigma**2, dtype=x.dtype, device=x.device)
        if measurement is not None and alpha > 0:
            norm = squared_norm(x, measurement)
            curvature = curvature + norm / (alpha**2 * (measurement.noise_std**2 + spread * norm))
        step = 2 * self.step_size / curvature
        for j in range(self.iterations):
            slope = denoise(x, t).eps / -sigma
            if measurement is not None and alpha > 0:
                slope = slope + wide_data_gradient(x / alpha, measurement, spread) / alpha
            x = x + step * slope + (2 * step).sqrt() * noise(j, x)
        return x
