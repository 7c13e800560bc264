"""SA-Solver: stochastic Adams predictor and corrector in half the log-SNR. Xue et al. 2023 (SA-Solver)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dinit.diffusion import Scales
from dinit.diffusion.denoised import weighted
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.sde.exponential import Linear, lagrange_weights, linear_part, moments

Node = tuple[Tensor, float]  # a posterior mean and half the log-SNR that it belongs to


@dataclass(frozen=True)
class History:
    """State of a run of SA-Solver.

    Attributes:
        nodes: Posterior means and half the log-SNR of the steps so far, the latest first.
        start: keep x_t + std z of the last step, for its corrector.
        linear: The exact part of the last step.
    """

    nodes: tuple[Node, ...]
    start: Tensor
    linear: Linear


@SAMPLERS.register("sa-solver")
@dataclass(frozen=True)
class SASolver(Sampler):
    r"""SA-Solver: stochastic Adams–Bashforth predictor, Adams–Moulton corrector, in x0. Xue et al. 2023.

    Formula: $x_s = \frac{\sigma_s}{\sigma_t} e^{-\tau^2 h} x_t + \alpha_s \int_{\lambda_t}^{\lambda_s}
        (1+\tau^2)\, e^{-(1+\tau^2)(\lambda_s-\lambda)} P(\lambda)\,d\lambda + \sigma_s \sqrt{1 - e^{-2\tau^2 h}}\,
        z$

    lambda = log(alpha / sigma), h its rise over the step. P is the polynomial through the posterior means of the
    last predictor_order steps. Once the network is evaluated at the predicted state, the step is taken again with
    that evaluation as one of corrector_order nodes and the same noise, at no further evaluation; the state after
    the very last step stays predicted. Orders rise with the history; steps from alpha = 0 or to sigma = 0 are of
    first order. Source: arXiv:2309.05019.

    Args:
        tau: Size of the noise, at least 0; 0 is the probability flow, 1 the reverse-time SDE.
        low: Log-SNR above which tau applies; steps from below it are deterministic.
        high: Log-SNR up to which tau applies, above low; steps from above it are deterministic.
        predictor_order: 1 to 4.
        corrector_order: 0 (none) to 4.
        weights: Of two nodes: 'exact' is the integral's; 'published' is that of the authors' code, which departs
            from it by a term that vanishes with the step.

    Raises:
        ValueError: An option out of its range.
    """

    tau: float = 1.0
    low: float = -math.inf
    high: float = math.inf
    predictor_order: int = 2
    corrector_order: int = 2
    weights: Literal["exact", "published"] = "exact"

    def __post_init__(self) -> None:
        if not self.tau >= 0:
            raise ValueError(f"tau must be at least 0 (0 is deterministic, 1 the reverse-time SDE), got {self.tau}")
        if not self.low < self.high:
            raise ValueError(f"low must be below high, both log-SNR; got low = {self.low}, high = {self.high}")
        if self.predictor_order not in (1, 2, 3, 4):
            raise ValueError(f"predictor_order must be 1, 2, 3 or 4, got {self.predictor_order!r}")
        if self.corrector_order not in (0, 1, 2, 3, 4):
            raise ValueError(f"corrector_order must be 0 (no corrector) to 4, got {self.corrector_order!r}")
        if self.weights not in ("exact", "published"):
            raise ValueError(f"weights must be 'exact' or 'published', got {self.weights!r}")

    def claims(self) -> Claims:
        cost = "steps" if self.low == -math.inf and self.high == math.inf else "times"
        if self.tau > 0:
            return Claims(draws_per_step=1, cost_depends_on=cost)
        corrected = min(self.corrector_order, self.predictor_order + 1)
        return Claims(corrected or self.predictor_order, cost_depends_on=cost)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: History | None, noise: StepNoise
    ) -> tuple[Tensor, History]:
        node = (denoise(x_t, t).x0, t.floats.log_snr / 2)
        before = state.nodes if state else ()
        if state and self.corrector_order and before:
            nodes = (node, *before)[: self.corrector_order]
            x_t = self._moved(state.start, nodes, before[0][1], state.linear)
        nodes = (node, *before) if t.floats.alpha > 0 else ()
        linear = linear_part(t.floats, s.floats, self._eta(t.floats.log_snr))
        start = linear.keep * x_t
        if linear.std > 0:
            start = weighted(1.0, start, linear.std, noise(0, x_t))
        if nodes and s.floats.sigma > 0:
            x_s = self._moved(start, nodes[: self.predictor_order], node[1], linear)
        else:
            x_s = weighted(1.0, start, linear.gain, node[0])
        kept = max(self.predictor_order, self.corrector_order) - 1
        return x_s, History(nodes[: max(kept, 1)], start, linear)

    def _eta(self, log_snr: float) -> float:
        """Variance of the SDE's noise over that of the reverse-time SDE."""
        return self.tau**2 if self.low <= log_snr <= self.high else 0.0

    def _moved(self, x: Tensor, nodes: tuple[Node, ...], start: float, linear: Linear) -> Tensor:
        """x plus alpha_s times the integral of the polynomial through the nodes; start is half the log-SNR at t."""
        of_powers = moments(linear.decay, len(nodes))
        if self.weights == "published" and len(nodes) == 2:
            of_powers[1] = linear.decay / 2
        weights = lagrange_weights([(at - start) / linear.h for _, at in nodes], of_powers)
        for weight, (x0, _) in zip(weights, nodes, strict=True):
            x = weighted(1.0, x, linear.alpha_s * weight, x0)
        return x
