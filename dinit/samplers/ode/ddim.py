"""DDIM and its stochastic family. Song et al. 2021 (Denoising Diffusion Implicit Models)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dinit.diffusion import Scales
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise


def transition_variance(t: Scales, s: Scales) -> Tensor:
    """Variance of x_t given x_s for s < t: sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2. Kingma et al. 2021."""
    return t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2


def ancestral_std(t: Scales, s: Scales, eta: float) -> Tensor:
    """Standard deviation of the noise put back from t to s < t. Song et al. 2021 (DDIM), Eq. 16.

    eta: 0 is deterministic DDIM, 1 is DDPM. In units of x.
    """
    return eta * s.sigma / t.sigma * transition_variance(t, s).sqrt()


@SAMPLERS.register("ddim")
@dataclass(frozen=True)
class DDIM(Sampler):
    """DDIM with eta from 0 (deterministic) to 1 (DDPM), first order. Song et al. 2021, Eq. 12."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must be in [0, 1] (0 is DDIM, 1 is DDPM), got {self.eta}")

    def claims(self) -> Claims:
        return Claims(draws_per_step=int(self.eta > 0), supported_outputs=frozenset({"renoise_eps"}))

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        d = denoise(x_t, t)
        std = ancestral_std(t, s, self.eta)
        x_s = s.alpha * d.x0 + (s.sigma**2 - std**2).sqrt() * d.eps
        if self.stochastic:
            x_s = x_s + std * noise(0, x_t)
        return x_s, None
