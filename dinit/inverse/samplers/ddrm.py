"""Denoising diffusion restoration models. Kawar et al. 2022."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.diffusion import Denoised, Scales
from dinit.inverse.measurement import Measurement
from dinit.inverse.operators.svd import SMALLEST_INVERTED
from dinit.inverse.samplers.base import POSTERIOR_SAMPLERS, PosteriorSampler
from dinit.samplers.base import Claims, StepDenoiser, StepNoise


@POSTERIOR_SAMPLERS.register("ddrm")
@dataclass(frozen=True)
class DDRM(PosteriorSampler):
    """Restoration in the coefficients of the operator's singular vectors, each at its own noise. Kawar et al. 2022.

    Source: arXiv:2201.11793, Eq. 4 to 8, written for any path: its state is x_t / alpha. Without a measurement it
    is DDIM with a noise of eta sigma.

    Args:
        measurement: What the images are known by, with a linear operator; None for nothing.
        eta: Share of fresh noise, in [0, 1], in coefficients where y is noisier than the state; 0.85 in the paper.
        eta_b: Weight of y, in [0, 1], in coefficients where the state is noisier.
        rtol: Singular values up to this share of the largest count as 0, in [0, 1): what they measure is the
            denoiser's. 0 for all that y determines.

    Raises:
        ValueError: eta or eta_b outside [0, 1], or rtol outside [0, 1); from a run, an operator that is not linear.
    """

    eta: float = 0.85
    eta_b: float = 1.0
    rtol: float = SMALLEST_INVERTED

    def __post_init__(self) -> None:
        for name in ("eta", "eta_b"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0 <= self.rtol < 1:
            raise ValueError(f"rtol is a share of the largest singular value, in [0, 1), got {self.rtol}")

    def claims(self) -> Claims:
        return Claims(draws_per_step=1)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: bool | None, noise: StepNoise
    ) -> tuple[Tensor, bool]:
        measurement = self.fitted(x_t)
        if measurement is not None and state is None:
            x_t = self._start(x_t, t, measurement)
        d = denoise(x_t, t)
        alpha, sigma = s.floats.alpha, s.floats.sigma
        return self._next(d, t, alpha, sigma, measurement, noise(0, x_t)), True

    def finish(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, state: bool | None, noise: StepNoise
    ) -> tuple[Tensor, bool | None]:
        measurement = self.fitted(x_t)
        if measurement is not None and state is None:
            x_t = self._start(x_t, t, measurement)
        d = denoise(x_t, t)
        if measurement is None or measurement.noise_std > 0:
            return d.x0, state
        shape = tuple(x_t.shape[1:])
        svd = measurement.linear("ddrm").svd(shape)
        known = svd.pseudo_inverse(svd.of_measurement(measurement.residual(d.x0)), self.rtol)
        return d.x0 + self.eta_b * svd.to_image(known, shape), state

    def _next(
        self, d: Denoised, t: Scales, alpha: float, sigma: float, measurement: Measurement | None, z: Tensor
    ) -> Tensor:
        """x_s, (B, C, H, W), from the prediction at t: Eq. 7 for every coefficient."""
        kept = math.sqrt(1 - self.eta**2) * sigma
        free = alpha * d.x0 + kept * d.eps + self.eta * sigma * z
        if measurement is None:
            return free
        shape = tuple(free.shape[1:])
        svd = measurement.linear("ddrm").svd(shape)
        rank = svd.rank(self.rtol)
        values = svd.values_on(free)[:rank]
        y = svd.of_measurement(measurement.y)[:, :rank] / values
        own = measurement.noise_std / values  # the standard deviation of each coefficient of y, in units of x0
        x0, draw = (svd.of_image(v)[:, :rank] for v in (d.x0, z))
        drawn_to_y = torch.where(own > 0, (y - x0) / torch.where(own > 0, own, torch.ones_like(own)), y * 0)
        below = alpha * x0 + kept * drawn_to_y + self.eta * sigma * draw
        rest = (sigma**2 - (alpha * own * self.eta_b) ** 2).clamp(min=0).sqrt()
        above = alpha * ((1 - self.eta_b) * x0 + self.eta_b * y) + rest * draw
        known = torch.where(sigma >= alpha * own, above, below) - svd.of_image(free)[:, :rank]
        return free + svd.to_image(torch.nn.functional.pad(known, (0, free[0].numel() - rank)), shape)

    def _start(self, x: Tensor, t: Scales, measurement: Measurement) -> Tensor:
        """The first state: coefficients where it is noisier than y begin at y, Eq. 5."""
        alpha, sigma = t.floats.alpha, t.floats.sigma
        shape = tuple(x.shape[1:])
        svd = measurement.linear("ddrm").svd(shape)
        rank = svd.rank(self.rtol)
        values = svd.values_on(x)[:rank]
        own = alpha * measurement.noise_std / values
        x_known = svd.of_image(x)[:, :rank]
        rest = (sigma**2 - own**2).clamp(min=0).sqrt()
        begun = alpha * svd.of_measurement(measurement.y)[:, :rank] / values + rest / sigma * x_known
        change = torch.where(own <= sigma, begun - x_known, torch.zeros_like(begun))
        return x + svd.to_image(torch.nn.functional.pad(change, (0, x[0].numel() - rank)), shape)
