"""Closed-form denoisers for Gaussian data and class-conditional Gaussian mixtures.

Posterior mean, score, log-likelihood and marginals are known at every t, and for the Gaussian the solution of the
probability-flow ODE. Use them to test a sampler of your own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dinit.devices import upload
from dinit.diffusion import Condition, Denoised, Process, Scales
from dinit.models.gaussian_mixture import GaussianMixture, MixtureOfClasses


class MixtureDenoiser(MixtureOfClasses):
    """Exact denoiser for x0 ~ sum_k w_k N(mu_k, diag v_k), where each component k belongs to one class.

    The null label stands for the whole mixture. A condition is embedded as component log-weights, (B, K).

    Args:
        process: of the noise.
        means: mu, (K, *shape).
        variances: v, (K, *shape), >= 0.
        weights: w, (K,), positive; they are divided by their sum. None is equal weights.
        component_class: (K,) int64 in 0 .. num_classes - 1; None is one class.
        t_max: largest time.

    Raises:
        ValueError: shapes that do not fit, or a class without a component.
    """

    def __init__(
        self,
        process: Process,
        means: Tensor,
        variances: Tensor,
        weights: Tensor | None = None,
        component_class: Tensor | None = None,
        t_max: float = 1.0,
    ) -> None:
        components = means.shape[0]
        if variances.shape != means.shape:
            raise ValueError(
                f"variances must have the means' shape {tuple(means.shape)}, got {tuple(variances.shape)}"
            )
        weights = torch.ones(components, dtype=torch.float64) if weights is None else weights.double()
        super().__init__(process, components, weights, component_class, t_max)
        self.means, self.variances = means.double(), variances.double()

    @property
    def mixture(self) -> GaussianMixture:
        """The law of x0, with its posteriors under linear measurements."""
        return GaussianMixture.low_rank(
            self.weights, self.means.flatten(1), self.variances.flatten(1), shape=tuple(self.means.shape[1:])
        )

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        k = self.scales(t)
        kx = k.like(x_t)
        a, s = _components_like(kx, x_t)
        means, variances = _like(self.means, x_t), _like(self.variances, x_t)
        total = a**2 * variances + s**2  # (1 | B, K, *shape)
        pull = (x_t[:, None] - a * means) / total
        log_r = self._log_joint(x_t, a, means, total) + cond.embedding.to(x_t)
        r = torch.softmax(log_r, dim=1).reshape(*log_r.shape, *(1,) * (x_t.ndim - 1))
        return Denoised(x_t, (r * (means + a * variances * pull)).sum(1), kx)

    def log_prob(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition | None = None) -> Tensor:
        """Log-density log p_t(x_t | cond).

        Args:
            x_t: (B, *shape).
            t: time, or its scales.
            cond: None is the whole mixture.

        Returns:
            (B,) in nats.
        """
        cond = cond or self.condition(None, x_t.shape[0], x_t.device)
        a, s = _components_like(self.scales(t).like(x_t), x_t)
        means, variances = _like(self.means, x_t), _like(self.variances, x_t)
        log_weights = torch.log_softmax(cond.embedding.to(x_t), dim=1)
        joint = self._log_joint(x_t, a, means, a**2 * variances + s**2)
        return torch.logsumexp(joint + log_weights, dim=1)

    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Exact draws of x0.

        Args:
            labels: (B,) int64 in 0 .. num_classes.
            generator: of the draws.

        Returns:
            (B, *shape) float64.
        """
        component = torch.multinomial(self.embed(labels).exp(), 1, generator=generator)[:, 0]
        noise = torch.randn(len(labels), *self.means.shape[1:], generator=generator, dtype=torch.float64)
        return self.means[component] + self.variances[component].sqrt() * noise

    @staticmethod
    def _log_joint(x_t: Tensor, a: Tensor, means: Tensor, total: Tensor) -> Tensor:
        """log N(x_t; alpha mu_k, V_k) of every component, (B, K)."""
        terms = (x_t[:, None] - a * means) ** 2 / total + total.log() + math.log(2 * math.pi)
        return -terms.flatten(2).sum(-1) / 2


class GaussianDenoiser(MixtureDenoiser):
    """Exact denoiser for x0 ~ N(mean, std^2) in every pixel; its probability-flow ODE has a closed solution.

    Args:
        process: of the noise.
        mean: a number, or a tensor of `shape`.
        std: >= 0.
        shape: of one sample.
        t_max: largest time.
    """

    def __init__(
        self, process: Process, mean: float | Tensor, std: float, shape: tuple[int, ...], t_max: float = 1.0
    ) -> None:
        mean = torch.as_tensor(mean, dtype=torch.float64).expand(shape)
        super().__init__(process, mean[None], torch.full((1, *shape), std**2, dtype=torch.float64), t_max=t_max)
        self.variance = std**2

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        """Arguments as in `Denoiser.__call__`; the mixture's formula for one component runs fewer kernels."""
        k = self.scales(t).like(x_t)
        signal, noise = k.alpha**2 * self.variance, k.sigma**2
        gain = k.alpha * self.variance / (signal + noise)
        return Denoised(x_t, _like(self.means[0], x_t) * (noise / (signal + noise)) + gain * x_t, k)

    def flow(self, x_t: Tensor, t: Tensor | float, s: Tensor | float) -> Tensor:
        """Exact solution at time s of the probability-flow ODE through x_t at time t.

        Args:
            x_t: (B, *shape).
            t: time of x_t.
            s: time of the solution.

        Returns:
            (B, *shape).
        """
        k, l = self.scales(t), self.scales(s)
        mean, variance = _like(self.means[0], x_t), _like(self.variances[0], x_t)
        stretch = ((l.alpha**2 * variance + l.sigma**2) / (k.alpha**2 * variance + k.sigma**2)).sqrt()
        return l.alpha * mean + stretch * (x_t - k.alpha * mean)


def _like(values: Tensor, x_t: Tensor) -> Tensor:
    """The values on x's device and in its dtype."""
    return upload(values, x_t.device, x_t.dtype)


def _components_like(k: Scales, x_t: Tensor) -> tuple[Tensor, Tensor]:
    """Scales alpha and sigma that broadcast against (B, K, *shape)."""
    if k.time.ndim == 0:
        return k.alpha, k.sigma
    return k.alpha[:, None], k.sigma[:, None]
