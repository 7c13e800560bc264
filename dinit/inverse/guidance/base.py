"""Posterior guidance: the denoiser of p(x0 | y) from that of p(x0) and a measurement y. What its methods share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Process, Scales
from dinit.diffusion.process import expand
from dinit.inverse.divergence import warn_of_divergence
from dinit.inverse.measurement import Measurement
from dinit.samplers.guidance.base import DenoiseFunction, Guidance, Guided, non_batch_dims
from dinit.samplers.guidance.gradient import differentiable

# Above the first noise level (a flow or a zero-terminal-SNR schedule at t = 1) nothing is left of the Jacobian, and
# the network is evaluated at the second instead. What x_t then adds to x0 is taken off to first order, which leaves
# an error of the order of 1e-4.
_NOISIEST, _EVALUATED = 1e3, 1e2


@dataclass(frozen=True)
class PosteriorGuidance(Guidance):
    """Guidance by a measurement. Without one it is neutral.

    Args:
        measurement: What the images are known by; None for nothing.
    """

    measurement: Measurement | None = None

    linear_only: ClassVar[bool] = True

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.measurement is None:
            return denoiser
        measurement = self.measurement
        if self.linear_only:
            measurement.linear(type(self).__name__)
        owner = object()

        def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            key = (owner, x_t.shape, x_t.dtype, x_t.device)
            fitted = cond.run.states.get(key, lambda: measurement.fitted(x_t))  # once a run
            return self.posterior(denoiser, x_t, t, cond, fitted)

        return _Measured(denoiser, guided, measurement, getattr(self, "registry_name", type(self).__name__))

    def rows(self, part: slice) -> Self:
        return self if self.measurement is None else replace(self, measurement=self.measurement.rows(part))

    @abstractmethod
    def posterior(
        self, denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition, measurement: Measurement
    ) -> Denoised:
        """The prediction of E[x0 | x_t, y].

        Args:
            denoiser: Of E[x0 | x_t].
            x_t: (B, C, H, W).
            t: One time, or one a sample.
            cond: The condition of the batch.
            measurement: With a row for each of the batch.
        """


class _Measured(Guided):
    """A denoiser of p(x0 | y)."""

    def __init__(self, inner: Denoiser, function: DenoiseFunction, measurement: Measurement, who: str) -> None:
        super().__init__(inner, function)
        self.measurement, self.who = measurement, who

    def check_end(self, x0: Tensor) -> None:
        warn_of_divergence(self.who, self.measurement, x0)
        super().check_end(x0)


@dataclass(frozen=True)
class Linearised:
    """A prediction and the products of vectors with its Jacobian J = d E[x0 | x_t] / d x_t.

    For an exact denoiser J is symmetric and alpha / sigma^2 times the covariance of x0 given x_t.

    Attributes:
        denoised: The prediction, for the time that it was wanted at.
        vjp: v -> J^T v, from (B, C, H, W) to (B, C, H, W). Each product costs a backward pass.
        scales: Those at which the Jacobian was taken, broadcastable to x_t, alpha > 0.
    """

    denoised: Denoised
    vjp: Callable[[Tensor], Tensor]
    scales: Scales

    def covariance(self, v: Tensor) -> Tensor:
        """Cov[x0 | x_t] v by Tweedie's second-order formula, sigma^2 / alpha J^T v, (B, C, H, W)."""
        return self.scales.sigma**2 / self.scales.alpha * self.vjp(v)

    def shifted(self, change: Tensor) -> Denoised:
        """The prediction with `change` (B, C, H, W) added to its x0."""
        return replace(self.denoised, x0=self.denoised.x0 + change)

    def towards(self, change: Tensor, residual: Tensor, seen: Tensor) -> Denoised:
        """The prediction with `change`, or where that overshoots y, with the share of it that meets y best.

        It overshoots where |y - A x0| would be larger than without it; the share is then that of an exact line
        search. The posterior mean of a Gaussian never overshoots, so a change that is exact is left as it is. One
        made with too small a covariance of x0 overshoots by several times, and the next steps by more.

        Args:
            change: (B, C, H, W).
            residual: y - A x0, (B, ...).
            seen: A applied to `change`, (B, ...).
        """
        axes, column = non_batch_dims(residual), (-1, *(1,) * (change.ndim - 1))
        square, along = seen.square().sum(axes), (seen * residual).sum(axes)
        beyond = 2 * along < square
        share = along.clamp(min=0) / torch.where(beyond, square, torch.ones_like(square))
        return self.shifted(torch.where(beyond, share, torch.ones_like(share)).reshape(column) * change)


def linearise(denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition) -> Linearised:
    """The prediction with its Jacobian, where almost no signal is left that of a slightly cleaner time.

    Args:
        denoiser: No sample of it depends on another.
        x_t: (B, C, H, W).
        t: One time, or one a sample.
        cond: The condition of the batch.
    """
    x, at, blank = _with_signal(denoiser.process, x_t, t)
    denoised, vjp = predict_with_vjp(denoiser, x, at, cond)
    x0, k = denoised.x0, at.like(x_t)
    if blank is not None:
        x0 = torch.where(blank, x0 - vjp((x - k.alpha * x0).detach()), x0)
    return Linearised(replace(denoised, x_t=x_t, x0=x0, scales=t.like(x_t)), vjp, k)


def predict_with_vjp(
    denoiser: Denoiser, x_t: Tensor, t: Scales, cond: Condition
) -> tuple[Denoised, Callable[[Tensor], Tensor]]:
    """The prediction, and products with its Jacobian J = d E[x0 | x_t] / d x_t from the left: v -> J^T v.

    It works inside torch.no_grad and inference_mode. Where the caller differentiates x_t itself, the results can be
    differentiated; else they have no gradients. Each product costs a backward pass.

    Args:
        denoiser: No sample of it depends on another.
        x_t: (B, C, H, W).
        t: One time, or one a sample.
        cond: The condition of the batch.

    Returns:
        The prediction, and the function from (B, C, H, W) to (B, C, H, W).
    """
    attached = torch.is_grad_enabled() and x_t.requires_grad
    with torch.inference_mode(False), torch.enable_grad():
        x = x_t if attached else x_t.detach().clone().requires_grad_()
        denoised = denoiser(x, differentiable(t), _kept(cond))
        x0 = denoised.x0

    def vjp(v: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            v = v.clone() if v.is_inference() else v
            return torch.autograd.grad(x0, x, v, retain_graph=True, create_graph=attached)[0]

    return replace(denoised, x_t=x_t, x0=x0 if attached else x0.detach()), vjp


def _kept(cond: Condition) -> Condition:
    """The condition with tensors that autograd may keep: it refuses those made under inference_mode."""
    values = {f.name: getattr(cond, f.name) for f in fields(cond)}
    made = {name: v.clone() for name, v in values.items() if isinstance(v, Tensor) and v.is_inference()}
    return replace(cond, **made) if made else cond


def _with_signal(process: Process, x_t: Tensor, t: Scales) -> tuple[Tensor, Scales, Tensor | None]:
    """The state and the times to evaluate at, and for which rows they differ from those given; None for no row."""
    if t.single and t.floats.sigma <= _NOISIEST * t.floats.alpha:
        return x_t, t, None
    at = process.scales(process.time_of_noise_level(torch.tensor(_EVALUATED, dtype=torch.float64)))
    if t.single:
        return x_t * (at.floats.sigma / t.floats.sigma), at, torch.ones((), dtype=torch.bool)
    blank, known = t.sigma > _NOISIEST * t.alpha, at.floats
    values = (known.time, known.alpha, known.sigma, known.d_alpha, known.d_sigma)
    given = (t.time, t.alpha, t.sigma, t.d_alpha, t.d_sigma)
    mixed = Scales(*(torch.where(blank, value, one) for value, one in zip(values, given, strict=True)))
    ratio = torch.where(blank, mixed.sigma / t.sigma, torch.ones_like(t.sigma))
    return x_t * expand(ratio, x_t), mixed, expand(blank, x_t) > 0
