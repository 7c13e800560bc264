"""DDIM and its stochastic family. Song et al. 2021 (DDIM)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, overload

from torch import Tensor

from dinit.diffusion import Scales
from dinit.diffusion.denoised import weighted
from dinit.diffusion.process import ScalarScales
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise


@overload
def transition_variance(t: ScalarScales, s: ScalarScales) -> float: ...
@overload
def transition_variance(t: Scales, s: Scales) -> Tensor: ...
def transition_variance(t: Any, s: Any) -> Any:
    """Variance of x_t given x_s for s < t: sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2. Kingma et al. 2021."""
    kept = t.alpha / s.alpha * s.sigma
    return t.sigma * t.sigma - kept * kept


def ancestral_std(t: ScalarScales, s: ScalarScales, eta: float) -> float:
    """Standard deviation of the noise added from t to s < t, in units of x. Song et al. 2021 (DDIM), Eq. 16.

    Args:
        t: Scales of the step's start.
        s: Scales of its end.
        eta: In [0, 1]: 0 is deterministic DDIM, 1 is DDPM.
    """
    return eta * s.sigma / t.sigma * math.sqrt(max(transition_variance(t, s), 0.0))


@SAMPLERS.register("ddim")
@dataclass(frozen=True)
class DDIM(Sampler):
    r"""DDIM, first order, from deterministic to DDPM's noise. Song et al. 2021 (DDIM), Eq. 12; arXiv:2010.02502.

    Formula: $x_s = \alpha_s x_0 + \sqrt{\sigma_s^2 - \varsigma^2}\,\varepsilon + \varsigma z,\quad \varsigma^2 =
        \eta^2 \frac{\sigma_s^2}{\sigma_t^2}\left(\sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2}\sigma_s^2\right)$

    Args:
        eta: Share of the noise of the reverse process, in [0, 1]: 0 is deterministic DDIM, 1 is DDPM.

    Raises:
        ValueError: eta outside [0, 1].
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"eta must be in [0, 1] (0 is DDIM, 1 is DDPM), got {self.eta}")

    def claims(self) -> Claims:
        return Claims(draws_per_step=int(self.eta > 0), supported_outputs=frozenset({"renoise_eps"}))

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: None, noise: StepNoise
    ) -> tuple[Tensor, None]:
        d = denoise(x_t, t)
        if self.eta == 0:
            return d.combination(0.0, s.floats.alpha, s.floats.sigma), None
        std = ancestral_std(t.floats, s.floats, self.eta)
        direction = math.sqrt(max(s.floats.sigma * s.floats.sigma - std * std, 0.0))
        return weighted(1.0, d.combination(0.0, s.floats.alpha, direction), std, noise(0, x_t)), None
