"""Moment-matching posterior sampling. Rozet et al. 2024 (Learning diffusion priors from observations by EM)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.inverse.guidance.base import PosteriorGuidance, linearise
from dinit.inverse.guidance.solving import minimal_residual
from dinit.inverse.measurement import Measurement
from dinit.samplers.guidance.base import GUIDANCES


@GUIDANCES.register("mmps")
@dataclass(frozen=True)
class MMPS(PosteriorGuidance):
    """Posterior mean of a Gaussian with the exact mean and covariance of x0 given x_t. Rozet et al. 2024.

    x0 + C A* (A C A* + sigma_y^2 I)^-1 (y - A x0), where the covariance C is sigma^2 / alpha times the denoiser's
    Jacobian. The system is solved by iterations that need products with C alone, by minimal residuals, as a
    network's Jacobian is not symmetric. On Gaussian data a full solve, as many iterations as y has numbers, is
    exact. Source: arXiv:2405.13712, Section 4.2.

    Args:
        measurement: What the images are known by; None is neutral.
        iterations: Of the solver, at least 1, each a vector-Jacobian product, besides one at the end. The result
            for few iterations is close to the data that is easy to fit.

    Raises:
        ValueError: iterations below 1; from `wrap`, an operator that is not linear.
    """

    iterations: int = 5

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def posterior(
        self, denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition, measurement: Measurement
    ) -> Denoised:
        operator, shape = measurement.linear("mmps"), tuple(x_t.shape[1:])
        prior = linearise(denoiser, x_t, t, cond)

        def system(v: Tensor) -> Tensor:
            return operator.apply(prior.covariance(operator.adjoint(v, shape))) + measurement.noise_std**2 * v

        solved = minimal_residual(system, measurement.residual(prior.denoised.x0), self.iterations)
        return prior.shifted(prior.covariance(operator.adjoint(solved, shape)))
