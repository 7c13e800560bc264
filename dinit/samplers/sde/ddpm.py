"""DDPM's ancestral sampling, with its choices of variance. Ho et al. 2020; Nichol & Dhariwal 2021."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from dinit.diffusion import Denoised, Denoiser, Scales
from dinit.diffusion.denoised import weighted
from dinit.diffusion.process import ScalarScales
from dinit.registry import suggest
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.ode.ddim import ancestral_std, transition_variance

Variance = Literal["fixed-small", "fixed-large", "learned-range", "learned"]


def posterior_mean_of_x_s(d: Denoised, t: Scales, s: Scales) -> Tensor:
    """Mean of x_s given x_t and x0 = d.x0, for s < t, (B, C, H, W). Ho et al. 2020, Eq. 7, for any path."""
    a: Any = t.factors
    b: Any = s.factors
    left = b.sigma / a.sigma
    from_x0 = transition_variance(a, b) / (a.sigma * a.sigma)
    from_x_t = a.alpha / b.alpha * (left * left)
    if isinstance(a, ScalarScales):
        return d.combination(from_x_t, b.alpha * from_x0, 0.0)
    return from_x_t * d.x_t + b.alpha * from_x0 * d.x0


def ancestral_transition(d: Denoised, t: Scales, s: Scales, variance: Variance) -> tuple[Tensor, Tensor | float]:
    """Mean and standard deviation of x_s given x_t.

    Args:
        d: The denoised batch at t.
        t: Start of the step.
        s: End of the step.
        variance: As of `DDPM`.

    Returns:
        The mean (B, C, H, W), and the standard deviation, which has that shape where it is learned.
    """
    mean = posterior_mean_of_x_s(d, t, s)
    if variance == "learned-range":
        return mean, (d.log_variance(s) / 2).exp()
    if variance == "learned":
        assert d.variance_fraction is not None, "the sampler's check requires it"
        return mean, (d.variance_fraction - 0.5).exp()  # the channels are 2 fraction - 1
    if variance == "fixed-small":
        return mean, ancestral_std(t.floats, s.floats, 1.0)
    return mean, math.sqrt(max(transition_variance(t.floats, s.floats), 0.0))


def check_variance(variance: str, denoiser: Denoiser | None = None) -> None:
    """Check the choice of the variance.

    Args:
        variance: As of `DDPM`.
        denoiser: What has to learn a learned variance; None to check the word alone.

    Raises:
        ValueError: Another variance, or a learned one that the denoiser does not have.
    """
    if variance not in get_args(Variance):
        raise ValueError(f"unknown variance {variance!r}{suggest(str(variance), list(get_args(Variance)))}")
    if denoiser is not None and variance.startswith("learned") and not denoiser.learns_variance:
        raise ValueError(
            f"variance = {variance!r} needs a network that learned its variance, and this one did not: choose "
            "'fixed-small' or 'fixed-large'"
        )


@SAMPLERS.register("ddpm")
@dataclass(frozen=True)
class DDPM(Sampler):
    r"""DDPM's ancestral sampling, on any path and any subset of its times. Ho et al. 2020, Algorithm 2.

    Formula: $x_s = \frac{\alpha_t \sigma_s^2}{\alpha_s \sigma_t^2} x_t + \alpha_s
        \frac{\sigma_{t|s}^2}{\sigma_t^2} x_0 + \frac{\sigma_s}{\sigma_t} \sigma_{t|s}\, z,\quad \sigma_{t|s}^2 =
        \sigma_t^2 - \frac{\alpha_t^2}{\alpha_s^2}\sigma_s^2$

    The factor on z is that of variance = 'fixed-small'. Source: arXiv:2006.11239; learned variances,
    arXiv:2102.09672.

    Args:
        variance: Of x_s given x_t. 'fixed-small': of the posterior given x0 (beta-tilde). 'fixed-large': of x_t
            given x_s, sigma_t|s^2 (beta). 'learned-range': what the network learned between the two (Nichol &
            Dhariwal 2021). 'learned': for networks whose variance channels are log Σ itself, without bounds
            (Nichol & Dhariwal 2021, Section 3.1, who found it hard to train; guided-diffusion's LEARNED), on the
            steps they were trained on.

    Raises:
        ValueError: Another variance; from a run, a learned one that the network does not have.
    """

    variance: Variance = "fixed-small"

    def __post_init__(self) -> None:
        check_variance(self.variance)

    def claims(self) -> Claims:
        return Claims(draws_per_step=1, supported_outputs=frozenset({"mean_gradient"}))

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        check_variance(self.variance, denoiser)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        d = denoise(x_t, t)
        if s.floats.sigma == 0:  # clean data has no variance, whatever formula would be used for it
            return posterior_mean_of_x_s(d, t, s), None
        mean, std = ancestral_transition(d, t, s, self.variance)
        if d.mean_gradient is not None:  # a classifier's, in the form of Dhariwal & Nichol 2021, Algorithm 1
            mean = mean + std**2 * d.mean_gradient
        if isinstance(std, float):
            return weighted(1.0, mean, std, noise(0, x_t)), None
        return mean + std * noise(0, x_t), None
