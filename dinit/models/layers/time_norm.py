"""Norms whose weights depend on time alone, by four vectors each. Liu et al. 2024 (DiMR), arXiv:2406.09416."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RMS_EPS = 1e-8
LAYER_EPS = 1e-5


class TimeParameter(nn.Module):
    """A vector that moves between two learned ones as tau grows: p(tau) = p1 + sigmoid(tau (w + 1) + b) (p0 - p1).

    tau: the time as a number in [-1, 1]. p0, p1 start at `value`; w and b, a shift of the slope from 1 and an
    offset, at zero.
    """

    def __init__(self, dim: int, value: float) -> None:
        super().__init__()
        self.p0 = nn.Parameter(torch.full((dim,), value))
        self.p1 = nn.Parameter(torch.full((dim,), value))
        self.slope = nn.Parameter(torch.zeros(dim))
        self.offset = nn.Parameter(torch.zeros(dim))

    def forward(self, tau: Tensor, x: Tensor) -> Tensor:
        """tau (B,) or (1,), float32 at least, x (B, ..., dim) -> (B or 1, 1.., dim) in the dtype of x."""
        p0, p1, slope, offset = (part.to(tau.dtype) for part in (self.p0, self.p1, self.slope, self.offset))
        mixed = torch.sigmoid(tau[:, None] * (slope + 1) + offset)
        p = p1 + mixed * (p0 - p1)
        return p.to(x.dtype).unflatten(0, (-1, *[1] * (x.ndim - 2)))


class TimeRMSNorm(nn.Module):
    """TD-RMSNorm: x / (rms + 1e-8), times a time-dependent scale; computed in float32 at least."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = TimeParameter(dim, 1.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, ..., dim), tau (B,) or (1,) -> x's shape."""
        # A norm and not the root of a mean: its gradient is finite where x is zero.
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        rms = torch.linalg.vector_norm(exact, dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
        return (exact / (rms + RMS_EPS) * self.scale(tau, exact)).to(x.dtype)


class TimeLayerNorm(nn.Module):
    """TD-LayerNorm: zero mean and unit variance, times a time-dependent scale, plus a time-dependent shift.

    Computed in float32 at least.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = TimeParameter(dim, 1.0)
        self.shift = TimeParameter(dim, 0.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, ..., dim), tau (B,) or (1,) -> x's shape."""
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        normed = F.layer_norm(exact, x.shape[-1:], eps=LAYER_EPS)
        return (normed * self.scale(tau, exact) + self.shift(tau, exact)).to(x.dtype)
