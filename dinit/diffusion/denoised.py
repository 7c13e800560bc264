"""Posterior means of a noisy batch: what a denoiser returns, and sums of it for the steps of solvers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dinit.diffusion.process import ScalarScales, Scales


class OutputFactors(NamedTuple):
    """What a network's forward pass and output mean at a single time, as numbers.

    Attributes:
        noise_label: The network's time input.
        input_scale: Factor on x_t.
        a: Factor on x_t in the posterior mean.
        b: Factor on the output in the posterior mean.
        c: Factor on x_t in the posterior mean of the noise.
        e: Factor on the output in it.
    """

    noise_label: float
    input_scale: float
    a: float
    b: float
    c: float
    e: float


def weighted(a: float, x: Tensor, b: float, y: Tensor) -> Tensor:
    """a x + b y; x or y itself where that is the sum."""
    if a == 0 or b == 0:
        factor, only = (b, y) if a == 0 else (a, x)
        return only if factor == 1 else factor * only
    if not isinstance(x, Tensor):  # plain numbers of a rehearsal
        return a * x + b * y
    return torch.add(x if abs(a - 1) < _ROUNDING else a * x, y, alpha=b)


_ROUNDING = 1e-15  # what float64 leaves of a factor that is 1


@dataclass(frozen=True)
class Denoised:
    """Posterior mean of a noisy batch, and what follows from it.

    Two guidances set more than x0, `renoise_eps` and `mean_gradient`; only samplers that list such a field in
    `supported_outputs` use it.

    Args:
        x_t: The noisy batch, (B, C, H, W).
        x0: The posterior mean E[x0 | x_t], (B, C, H, W).
        scales: Those of the batch's time or times, broadcastable to x_t.
        variance_fraction: (B, C, H, W) in [0, 1] where the network learned its variance (Nichol & Dhariwal 2021):
            the weight of the upper bound log beta against the lower bound log beta-tilde. Else None.
        renoise_eps: The eps used to go on, (B, C, H, W), in place of the one that x_t and x0 imply; None: that
            one.
        mean_gradient: A gradient to add, times the variance of a stochastic step, to its mean, (B, C, H, W); or
            None.
        clean_eps: The network's eps at sigma = 0, (B, C, H, W), where x_t and x0 do not tell it; or None.
    """

    x_t: Tensor
    x0: Tensor
    scales: Scales
    variance_fraction: Tensor | None = None
    renoise_eps: Tensor | None = None
    mean_gradient: Tensor | None = None
    clean_eps: Tensor | None = None

    @cached_property  # multistep solvers use it in several steps
    def eps(self) -> Tensor:
        """The posterior mean of the noise. Where sigma is 0 it is the network's, or 0 where that has none."""
        if self.renoise_eps is not None:
            return self.renoise_eps
        if self.clean_eps is not None:
            return self.clean_eps
        if "x0" not in self.__dict__:
            output, of = self.__dict__["_raw"]
            return weighted(of.c, self.x_t, of.e, output)
        k = self.scales.factors
        if isinstance(k, ScalarScales):
            return (self.x_t - k.alpha * self.x0) / (k.sigma or math.inf)
        return (self.x_t - k.alpha * self.x0) / torch.where(k.sigma == 0, torch.inf, k.sigma)

    @property
    def score(self) -> Tensor:
        """The gradient of log p_t at x_t: -eps / sigma. Needs sigma > 0."""
        return -self.eps / self.scales.factors.sigma

    @property
    def velocity(self) -> Tensor:
        """dx/dt of the probability-flow ODE: alpha' x0 + sigma' eps."""
        k = self.scales.factors
        if isinstance(k, ScalarScales) and k.sigma:
            return self.combination(0.0, k.d_alpha, k.d_sigma)
        return k.d_alpha * self.x0 + k.d_sigma * self.eps

    def combination(self, x_t: float, x0: float, eps: float) -> Tensor:
        """x_t times the batch, x0 times its posterior mean and eps times that of the noise, (B, C, H, W).

        Of the three any two give the third, and so does a network's output: at a single time this is a sum of two
        tensors, in half the passes over memory, and rounded once.

        Args:
            x_t: Factor on the noisy batch.
            x0: Factor on the posterior mean.
            eps: Factor on the posterior mean of the noise.
        """
        if eps and not self._single:
            return weighted(1.0, weighted(x_t, self.x_t, x0, self.x0), eps, self.eps)
        of_x_t, of_other, other = self._in_two(x_t, x0, eps)
        return weighted(of_x_t, self.x_t, of_other, other)

    def added_to(self, x: Tensor, x0: float, eps: float) -> Tensor:
        """x plus x0 times the posterior mean and eps times that of the noise, (B, C, H, W).

        Args:
            x: (B, C, H, W).
            x0: Factor on the posterior mean.
            eps: Factor on the posterior mean of the noise.
        """
        if eps and not self._single:
            return weighted(1.0, weighted(1.0, x, x0, self.x0), eps, self.eps)
        of_x_t, of_other, other = self._in_two(0.0, x0, eps)
        return weighted(1.0, weighted(1.0, x, of_x_t, self.x_t), of_other, other)

    @property
    def _single(self) -> bool:
        """Whether x_t and x0 at a single time tell eps."""
        return self.renoise_eps is None and self.clean_eps is None and self.scales.single

    def _in_two(self, x_t: float, x0: float, eps: float) -> tuple[float, float, Tensor]:
        """The factor on x_t and that on another tensor, in a combination; and that tensor, the output or x0."""
        if "x0" not in self.__dict__:
            output, of = self.__dict__["_raw"]
            return x_t + x0 * of.a + eps * of.c, x0 * of.b + eps * of.e, output
        if eps:
            k = self.scales.floats
            if k.sigma:
                return x_t + eps / k.sigma, x0 - eps * k.alpha / k.sigma, self.x0
        return x_t, x0, self.x0

    @classmethod
    def of_output(cls, x_t: Tensor, output: Tensor, factors: OutputFactors, scales: Scales) -> Denoised:
        """The prediction of a network, whose posterior mean is computed where it is used.

        Where gradients are wanted it is computed here, as they are of the operations of this call. On a device
        other than the CPU the output is copied, as a captured graph uses its memory again.

        Args:
            x_t: The noisy batch, (B, C, H, W).
            output: The network's output, (B, C, H, W).
            factors: Of both in the posterior means of x0 and eps.
            scales: Those of the batch's time.
        """
        if output.requires_grad or x_t.requires_grad:
            return cls(x_t, factors.a * x_t + factors.b * output, scales)
        d = object.__new__(cls)
        d.__dict__.update(x_t=x_t, scales=scales, _raw=(output if output.is_cpu else output.clone(), factors))
        return d

    @classmethod
    def of_mean(cls, x_t: Tensor, x0: Tensor, scales: Scales) -> Denoised:
        """As the constructor, in half the time.

        Args:
            x_t: The noisy batch, (B, C, H, W).
            x0: The posterior mean, (B, C, H, W).
            scales: Those of the batch's time or times.
        """
        d = object.__new__(cls)
        d.__dict__.update(x_t=x_t, x0=x0, scales=scales)
        return d

    def __getattr__(self, name: str) -> Any:
        if name != "x0" or "_raw" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        output, of = self.__dict__["_raw"]
        self.__dict__["x0"] = found = of.a * self.x_t + of.b * output
        return found

    def log_variance(self, s: Scales) -> Tensor:
        """log of the learned variance of x_s given x_t. Nichol & Dhariwal 2021, Eq. 15.

        Args:
            s: Scales of the time s < t.

        Returns:
            (B, C, H, W).

        Raises:
            ValueError: The network learned no variance.
        """
        if self.variance_fraction is None:
            raise ValueError("this network has no learned variance: choose 'fixed-small' or 'fixed-large'")
        t = self.scales
        upper = (t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2).log()
        lower = upper + 2 * (s.sigma.log() - t.sigma.log())
        return self.variance_fraction * upper + (1 - self.variance_fraction) * lower

    def parts(self, count: int) -> tuple[Denoised, ...]:
        """The batch in `count` equal parts."""
        n = self.x_t.shape[0] // count
        return tuple(self.rows(slice(i * n, (i + 1) * n)) for i in range(count))

    def rows(self, part: slice) -> Denoised:
        """Some samples of the batch.

        Args:
            part: Which rows.
        """
        tensors = {
            name: None if (value := getattr(self, name)) is None else value[part]
            for name in ("x_t", "x0", "variance_fraction", "renoise_eps", "mean_gradient", "clean_eps")
        }
        scales = self.scales.map(lambda v: v[part]) if self.scales.time.ndim else self.scales
        return replace(self, scales=scales, **tensors)
