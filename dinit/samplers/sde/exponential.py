"""Exact linear part of the reverse-time SDE, in half the log-SNR, for the solvers that share it.

With lambda half the log-SNR and h its rise over a step, every SDE with the right marginals whose noise is eta
times that of the reverse-time SDE (in variance; eta = 0 is the probability flow) has from t to s the exact
solution

    x_s = (sigma_s / sigma_t) exp(-eta h) x_t + alpha_s * integral + sigma_s sqrt(1 - exp(-2 eta h)) z,
    integral over theta in [0, 1] of H exp(-H (1 - theta)) x0(lambda_t + theta h),  H = (1 + eta) h,

and a solver is an approximation of the posterior mean x0 along the step. Lu et al. 2022 (DPM-Solver++), Section 5;
Xue et al. 2023 (SA-Solver), where eta is tau².
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dinit.diffusion.process import ScalarScales


@dataclass(frozen=True)
class Linear:
    """Exact part of a step: x_s = keep x_t + alpha_s * integral + std z.

    Attributes:
        keep: Factor on x_t.
        std: Standard deviation of the new noise.
        h: Rise of half the log-SNR, inf from alpha = 0 or to sigma = 0.
        decay: H = (1 + eta) h.
        alpha_s: alpha at the end of the step.
    """

    keep: float
    std: float
    h: float
    decay: float
    alpha_s: float

    @property
    def gain(self) -> float:
        """alpha_s (1 - exp(-H)): what a posterior mean that stays the same adds."""
        return -self.alpha_s * math.expm1(-self.decay)


def linear_part(t: ScalarScales, s: ScalarScales, eta: float) -> Linear:
    """The exact part of the step from t to s.

    Args:
        t: Start of the step.
        s: End of the step.
        eta: Variance of the noise over that of the reverse-time SDE, at least 0.

    Returns:
        The factors; all but h and decay are finite.
    """
    h = (s.log_snr - t.log_snr) / 2
    forgotten = eta * h if eta else 0.0  # eta h, whose limit at eta = 0 is 0 for an infinite h too
    keep, std = s.sigma / t.sigma * math.exp(-forgotten), s.sigma * math.sqrt(-math.expm1(-2 * forgotten))
    return Linear(keep, std, h, h + forgotten, s.alpha)


def moments(decay: float, count: int) -> list[float]:
    """The integrals over theta in [0, 1] of H exp(-H (1 - theta)) theta^k for k < count; H = decay > 0."""
    if decay > 1:
        found = [-math.expm1(-decay)]
        for k in range(1, count):
            found.append(1 - k / decay * found[-1])
        return found
    # For small H the recursion subtracts nearly equal numbers; the series in H has positive terms only.
    terms = [math.exp(-decay) * decay ** (n + 1) / math.factorial(n) for n in range(20)]
    return [sum(term / (n + k + 1) for n, term in enumerate(terms)) for k in range(count)]


def lagrange_weights(nodes: Sequence[float], theta_moments: Sequence[float]) -> list[float]:
    """The integral of each node's Lagrange polynomial, from the integrals of the powers of theta.

    Args:
        nodes: n different values of theta.
        theta_moments: The integrals of theta^k for k = 0 .. n - 1.

    Returns:
        One weight for each node.
    """
    weights = []
    for i, node in enumerate(nodes):
        polynomial = [1.0]  # coefficients of theta^k, the constant first
        for other in (*nodes[:i], *nodes[i + 1 :]):
            lower, higher = [*polynomial, 0.0], [0.0, *polynomial]
            polynomial = [(b - other * a) / (node - other) for a, b in zip(lower, higher, strict=True)]
        weights.append(sum(c * m for c, m in zip(polynomial, theta_moments, strict=True)))
    return weights
