"""Pseudoinverse-guided diffusion models. Song et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.inverse.guidance.base import PosteriorGuidance, linearise
from dinit.inverse.guidance.solving import noise_to_signal, regularised
from dinit.inverse.measurement import Measurement
from dinit.samplers.guidance.base import GUIDANCES


@GUIDANCES.register("pigdm")
@dataclass(frozen=True)
class PiGDM(PosteriorGuidance):
    """The score of y under N(A x0, r^2 A A* + sigma_y^2 I), through the network. Song et al. 2023 (ICLR).

    r^2 = sigma^2 / (alpha^2 + sigma^2) is the variance of x0 given x_t where x0 is N(0, I), and x0 moves by
    sigma^2 / alpha J^T A* (r^2 A A* + sigma_y^2 I)^-1 (y - A x0), with one vector-Jacobian product. On data
    N(m, v I) it is exact with data_std = sqrt(v).

    Args:
        measurement: What the images are known by; None is neutral.
        data_std: Above 0, of a number of the data: r^2 = data_std^2 sigma^2 / (alpha^2 data_std^2 + sigma^2).
            Published: 1.
        adaptive: Multiply the score by r^2, the weight of the paper for images; else 1, by Bayes' rule.

    Raises:
        ValueError: data_std that is not positive; from `wrap`, an operator that is not linear.
    """

    data_std: float = 1.0
    adaptive: bool = False

    def __post_init__(self) -> None:
        if self.data_std <= 0:
            raise ValueError(f"data_std must be positive, got {self.data_std}")

    def posterior(
        self, denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition, measurement: Measurement
    ) -> Denoised:
        shape = tuple(x_t.shape[1:])
        operator = measurement.linear("pigdm")
        operator.svd(shape)  # refused before the network is evaluated
        prior = linearise(denoiser, x_t, t, cond)
        k, v = prior.scales, self.data_std**2
        total = k.alpha**2 * v + k.sigma**2
        rho = noise_to_signal(measurement.noise_std, v * k.sigma**2 / total)
        pull = prior.vjp(regularised(operator, measurement.residual(prior.denoised.x0), rho, shape))
        weight = v * k.sigma**2 / total if self.adaptive else 1.0
        return prior.shifted(weight * total / (k.alpha * v) * pull)  # sigma^2 / (alpha r^2), finite at sigma = 0
