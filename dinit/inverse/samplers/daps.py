"""Decoupled annealing posterior sampling. Zhang et al. 2025."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.diffusion import Denoiser, Scales
from dinit.inverse.measurement import Measurement
from dinit.inverse.samplers.base import POSTERIOR_SAMPLERS, PosteriorSampler
from dinit.inverse.samplers.likelihood import data_gradient, squared_norm
from dinit.samplers.base import Claims, StepDenoiser, StepNoise

LEAST_NOISE = 0.01  # of y in the likelihood, as published; without any, Langevin steps would have to be of size 0
LOWEST_LOG_SNR = -14.0  # of the times of the ODE's steps, where the path has none; the highest is 14


@POSTERIOR_SAMPLERS.register("daps")
@dataclass(frozen=True)
class DAPS(PosteriorSampler):
    """Decoupled annealing: an estimate of x0, drawn towards y by Langevin dynamics, is given new noise.

    At every time of the grid the probability-flow ODE is solved from x_t to an estimate of x0 in a few steps;
    Langevin dynamics then sample N(estimate, sigma_t^2 / alpha_t^2) times the likelihood of y; the next state is
    that sample with the noise of its time, whatever the state before was. Zhang et al. 2025.

    Source: arXiv:2407.01521, Algorithm 1 and Eq. 8.

    Args:
        measurement: What the images are known by; any differentiable operator. None for nothing.
        ode_steps: Euler steps of the ODE, at least 1.
        langevin_steps: At least 1.
        step_size: Of the Langevin steps, above 0, in units of the largest step that is stable, 2 over the largest
            curvature (the paper tunes an absolute one for each task).

    Raises:
        ValueError: An option out of its range.
    """

    ode_steps: int = 5
    langevin_steps: int = 100
    step_size: float = 0.1

    linear_only = False

    def __post_init__(self) -> None:
        for name in ("ode_steps", "langevin_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.step_size <= 1:
            raise ValueError(f"step_size is a share of the largest stable step, in (0, 1], got {self.step_size}")

    def claims(self) -> Claims:
        return Claims(nfe_per_step=self.ode_steps, draws_per_step=1 + self.langevin_steps)

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        # Uniform in log-SNR, from t to the cleanest time of the denoiser.
        process = denoiser.process
        last = process.log_snr(denoiser.t_min).clamp(max=-LOWEST_LOG_SNR)
        first = t.log_snr.clamp(min=LOWEST_LOG_SNR)
        share = torch.arange(1, self.ode_steps, dtype=torch.float64) / self.ode_steps
        between = first[:, None] + share * (last - first).clamp(min=0)[:, None]
        return torch.minimum(process.time_of(between), t.time[:, None])

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: None, noise: StepNoise
    ) -> tuple[Tensor, None]:
        measurement = self.fitted(x_t)
        d = denoise(x_t, t)
        for k in denoise.inner:
            x = d.combination(0.0, k.floats.alpha, k.floats.sigma)
            d = denoise(x, k)
        x0 = self._langevin(d.x0, t, measurement, noise)
        return s.floats.alpha * x0 + s.floats.sigma * noise(0, x_t), None

    def finish(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, state: None, noise: StepNoise
    ) -> tuple[Tensor, None]:
        measurement = self.fitted(x_t)
        return self._langevin(denoise(x_t, t).x0, t, measurement, noise), None

    def _langevin(self, estimate: Tensor, t: Scales, measurement: Measurement | None, noise: StepNoise) -> Tensor:
        """A sample of N(estimate, sigma^2 / alpha^2) times the likelihood, (B, C, H, W)."""
        if measurement is None:
            return estimate
        precision = (t.floats.alpha / t.floats.sigma) ** 2
        of_y = 1 / max(measurement.noise_std, LEAST_NOISE) ** 2
        step = self.step_size * 2 / (precision + of_y * squared_norm(estimate, measurement))
        x0 = estimate
        for j in range(self.langevin_steps):
            slope = precision * (estimate - x0) + of_y * data_gradient(x0, measurement)
            x0 = x0 + step * slope + (2 * step).sqrt() * noise(1 + j, x0)
        return x0
