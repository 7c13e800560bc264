"""ER-SDE-Solver: the extended reverse-time SDE with a free noise scale. Cui et al. 2023."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from torch import Tensor

from dinit.diffusion import Scales
from dinit.diffusion.denoised import weighted
from dinit.registry import suggest
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.idle import refuse_idle

NoiseScale = Literal["er-sde", "sde", "ode"]

# log phi(u) of log u, in the noise level u = sigma / alpha.
LOG_PHI: dict[NoiseScale, Callable[[float], float]] = {
    "ode": lambda log_u: log_u,
    "sde": lambda log_u: 2 * log_u,
    "er-sde": lambda log_u: log_u + (p := math.exp(0.3 * log_u)) + math.log1p(10 * math.exp(-p)),
}
# Gauss-Legendre nodes and weights on [0, 1]; the integrand is smooth in log u.
_NODES, _WEIGHTS = ((1 + (v := np.polynomial.legendre.leggauss(48))[0]) / 2).tolist(), (v[1] / 2).tolist()

# The posterior means of earlier steps and their noise levels, the latest first.
History = tuple[tuple[Tensor, float], ...]


@SAMPLERS.register("er-sde")
@dataclass(frozen=True)
class ERSDE(Sampler):
    r"""ER-SDE-Solver of orders 1 to 3, with any noise scale phi. Cui et al. 2023 (ER-SDE-Solver).

    Formula: $y_s = r y_t + \phi(u_s)\int_{u_s}^{u_t} \frac{\phi'(u)}{\phi(u)^2} P(u)\,du + \sqrt{u_s^2 - r^2
        u_t^2}\, z,\quad r = \frac{\phi(u_s)}{\phi(u_t)}$

    y = x / alpha, u = sigma / alpha is the noise level, and P is the polynomial in u through the last `order`
    posterior means; the integral is taken by quadrature. The degree of P rises with the history; a step from alpha
    = 0 or to sigma = 0 is of first order. Source: arXiv:2309.06169.

    Args:
        noise_scale: phi. 'er-sde': u (exp(u^0.3) + 10), the authors' choice for few steps; 'sde': u², the
            reverse-time SDE; 'ode': u, deterministic and of the order `order`.
        order: 1, 2 or 3.
        s_noise: Factor on the noise, positive.

    Raises:
        ValueError: An option out of its range.
    """

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "order"}

    noise_scale: NoiseScale = "er-sde"
    order: Literal[1, 2, 3] = 3
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if self.noise_scale not in LOG_PHI:
            known = list(get_args(NoiseScale))
            raise ValueError(f"unknown noise_scale {self.noise_scale!r}{suggest(str(self.noise_scale), known)}")
        if self.order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {self.order!r}")
        if not self.s_noise > 0:
            raise ValueError(f"s_noise, a factor on the noise, must be positive, got {self.s_noise}")
        if self.noise_scale == "ode":
            refuse_idle(
                self, ("s_noise",), "with noise_scale = 'ode', which adds no noise", "take another noise_scale"
            )

    def claims(self) -> Claims:
        return Claims(self.order) if self.noise_scale == "ode" else Claims(draws_per_step=1)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: History | None, noise: StepNoise
    ) -> tuple[Tensor, History]:
        x0 = denoise(x_t, t).x0
        a, b = t.floats, s.floats
        if a.alpha == 0 or b.sigma == 0:  # the limit: r = u_s / u_t for 'ode', 0 for the SDEs
            keep = b.sigma / a.sigma if self.noise_scale == "ode" else 0.0
            x_s = weighted(keep, x_t, b.alpha, x0)
            return self._noisy(x_s, b.sigma, noise, x_t), ()
        u_t, u_s = a.sigma / a.alpha, b.sigma / b.alpha
        log_phi = LOG_PHI[self.noise_scale]
        r = math.exp(log_phi(math.log(u_s)) - log_phi(math.log(u_t)))
        x_s = weighted(b.alpha / a.alpha * r, x_t, b.alpha * (1 - r), x0)
        history = ((x0, u_t), *(state or ()))[: self.order]
        if len(history) > 1:
            x_s = weighted(1.0, x_s, b.alpha, self._bend(history, u_s))
        std = b.sigma * math.sqrt(max(0.0, 1 - (r * u_t / u_s) ** 2))
        return self._noisy(x_s, std, noise, x_t), history

    def _noisy(self, x: Tensor, std: float, noise: StepNoise, like: Tensor) -> Tensor:
        return x if self.noise_scale == "ode" else weighted(1.0, x, self.s_noise * std, noise(0, like))

    def _bend(self, history: History, u_s: float) -> Tensor:
        """What the change of x0 along the step adds to y: Newton's divided differences times their integrals."""
        (x0, u_t), (x0_1, u_1) = history[:2]
        slope = (x0 - x0_1) / (u_t - u_1)
        first, second = self._integrals(u_t, u_s)
        if len(history) == 2:
            return first * slope
        x0_2, u_2 = history[2]
        curve = (slope - (x0_1 - x0_2) / (u_1 - u_2)) / (u_t - u_2)
        return first * (slope + (u_t - u_1) * curve) + second * curve

    def _integrals(self, u_t: float, u_s: float) -> tuple[float, float]:
        """phi(u_s) times the integrals of phi' / phi² (u - u_t)^k over [u_s, u_t], k = 1 and 2, by parts."""
        log_phi, width = LOG_PHI[self.noise_scale], math.log(u_t / u_s)
        at_s = log_phi(math.log(u_s))
        first, second = u_s - u_t, (u_s - u_t) ** 2
        for node, weight in zip(_NODES, _WEIGHTS, strict=True):
            u = u_s * math.exp(node * width)
            mass = weight * width * u * math.exp(at_s - log_phi(math.log(u)))  # phi(u_s) / phi(u) du
            first += mass
            second += 2 * mass * (u - u_t)
        return first, second
