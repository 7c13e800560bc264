"""Gradient guidance: what classifier and discriminator guidance share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.samplers.guidance.base import Guided, apply_interval

LogRatio = Callable[[Tensor, Scales, Condition], Tensor]


def gradient(function: Callable[[Tensor], Tensor], x_t: Tensor) -> Tensor:
    """The gradient of each sample's value with respect to that sample.

    It works inside torch.no_grad and inference_mode. Where the caller differentiates x_t itself (a likelihood),
    the result can be differentiated.

    Args:
        function: (B, C, H, W) to (B,), where no sample depends on another.
        x_t: (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    if torch.is_grad_enabled() and x_t.requires_grad:
        return torch.autograd.grad(function(x_t).sum(), x_t, create_graph=True)[0]
    with torch.inference_mode(False), torch.enable_grad():
        x = x_t.detach().clone().requires_grad_()
        return torch.autograd.grad(function(x).sum(), x)[0]


def shift_score(denoised: Denoised, change: Tensor) -> Denoised:
    """The same batch with `change` (B, C, H, W) added to its score: x0 moves by sigma^2 / alpha times it.

    Where alpha is 0 it stays as it is: x_t is noise alone there, and x0 does not depend on it.
    """
    alpha, sigma = denoised.scales.alpha, denoised.scales.sigma
    blank = alpha == 0
    gain = torch.where(blank, torch.zeros_like(alpha), sigma**2 / torch.where(blank, torch.ones_like(alpha), alpha))
    return replace(denoised, x0=denoised.x0 + gain * change)


def shift_mean(denoised: Denoised, change: Tensor) -> Denoised:
    """The same batch with `change` for stochastic steps to add, times their variance, to their mean."""
    before = denoised.mean_gradient
    return replace(denoised, mean_gradient=change if before is None else before + change)


def gradient_guidance(
    denoiser: Denoiser,
    log_ratio: LogRatio,
    scale: float,
    low: float = -math.inf,
    high: float = math.inf,
    shift: Callable[[Denoised, Tensor], Denoised] = shift_score,
    required_outputs: frozenset[str] = frozenset(),
    unconditional: bool = False,
) -> Denoiser:
    """Guided denoiser that follows the gradient of a function of the noisy image.

    Args:
        denoiser: The denoiser to guide.
        log_ratio: (x_t, t, condition) to (B,), whose gradient is followed.
        scale: Factor on the gradient.
        low: Lowest log-SNR that is guided.
        high: Highest log-SNR that is guided.
        shift: Applies the scaled gradient to a prediction.
        required_outputs: Fields of Denoised, besides x0, that `shift` sets.
        unconditional: Whether the denoiser is evaluated at its null class there; `log_ratio` has the condition all
            the same.
    """

    def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
        if t.time.ndim == 0 and not low <= t.floats.log_snr <= high:
            return denoiser(x_t, t, cond)
        given = denoiser(x_t, t, cond.null() if unconditional else cond)
        change = scale * gradient(lambda x: log_ratio(x, differentiable(t), cond), x_t)
        shifted = shift(given, change.to(x_t.dtype))
        if unconditional and t.time.ndim and (low > -math.inf or high < math.inf):
            given = denoiser(x_t, t, cond)
        return apply_interval(shifted, given, low, high)

    return Guided(denoiser, guided, required_outputs)


def differentiable(t: Scales) -> Scales:
    """Scales that autograd may keep: it refuses those made under inference_mode."""
    return t.map(torch.clone) if t.time.is_inference() else t
