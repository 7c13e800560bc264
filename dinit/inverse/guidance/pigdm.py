"""Pseudoinverse-guided diffusion models. Song et al. 2023."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.inverse.guidance.base import PosteriorGuidance, linearise
from dinit.inverse.guidance.dps import step_to_x0
from dinit.inverse.guidance.solving import noise_to_signal, regularised
from dinit.inverse.measurement import Measurement
from dinit.samplers.guidance.base import GUIDANCES


@GUIDANCES.register("pigdm")
@dataclass(frozen=True)
class PiGDM(PosteriorGuidance):
    """The score of y under N(A x0, r^2 A A* + sigma_y^2 I), through the network. Song et al. 2023 (ICLR).

    r^2 = sigma^2 / (alpha^2 + sigma^2) is the variance of x0 given x_t where x0 is N(0, I). With g = r^2 J^T A*
    (r^2 A A* + sigma_y^2 I)^-1 (y - A x0), one vector-Jacobian product, Bayes' rule moves x0 by sigma^2 / (alpha
    r^2) g: on data N(m, v I) it is exact with data_std = sqrt(v). The pixels of images are far from independent:
    the variance that y sees can be many times r^2, and the move too long by as much.

    The paper weights the score adaptively, so that after each ancestral step x_s / alpha_s moves by alpha g,
    whatever the length of the step. In a run of N steps, each 1/N in time, x0 then moves by N alpha^2 sigma^2 /
    (alpha g_t^2) g with the diffusion g_t, as for `dps`: on the open problem this is nearer to the posterior at 50
    ancestral steps, and does not meet a measurement without noise. It needs no line search.

    Args:
        measurement: What the images are known by; None is neutral.
        data_std: Above 0, of a number of the data: r^2 = data_std^2 sigma^2 / (alpha^2 data_std^2 + sigma^2).
            Published: 1.
        adaptive: The paper's weight, by the number of steps; else that of Bayes' rule.
        line_search: Where Bayes' rule overshoots y, so that |y - A x0| of an image would grow, x0 moves to where
            it is least. Published: without.
        steps: N of the adaptive weight, at least 1; None for the steps of the run (1000 outside a run).

    Raises:
        ValueError: data_std that is not positive; steps below 1; from `wrap`, an operator that is not linear.
    """

    data_std: float = 1.0
    adaptive: bool = False
    line_search: bool = True
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.data_std <= 0:
            raise ValueError(f"data_std must be positive, got {self.data_std}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps must be at least 1, or None for those of the run, got {self.steps}")

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
        residual = measurement.residual(prior.denoised.x0)
        pull = prior.vjp(regularised(operator, residual, rho, shape))
        bayes = total / (k.alpha * v)  # sigma^2 / (alpha r^2), finite at sigma = 0
        if not self.adaptive:
            change = bayes * pull
            if self.line_search:
                return prior.towards(change, residual, operator.apply(change))
            return prior.shifted(change)
        steps = self.steps or cond.run.steps or denoiser.process.num_steps
        return prior.shifted(steps * k.alpha**2 * step_to_x0(k) * pull)
