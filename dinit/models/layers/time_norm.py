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
        mixed = torch.sigmoid(tau[:, None] * (self.slope + 1) + self.offset)
        p = self.p1 + mixed * (self.p0 - self.p1)
        return p.to(x.dtype).unflatten(0, (-1, *[1] * (x.ndim - 2)))


class TimeRMSNorm(nn.Module):
    """TD-RMSNorm: x / (rms + 1e-8), times a time-dependent scale."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = TimeParameter(dim, 1.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, ..., dim), tau (B,) or (1,) -> x's shape."""
        # A norm and not the root of a mean: its gradient is finite where x is zero.
        rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / math.sqrt(x.shape[-1])
        return x / (rms + RMS_EPS) * self.scale(tau, x)


class TimeLayerNorm(nn.Module):
    """TD-LayerNorm: zero mean and unit variance, times a time-dependent scale, plus a time-dependent shift."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = TimeParameter(dim, 1.0)
        self.shift = TimeParameter(dim, 0.0)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, ..., dim), tau (B,) or (1,) -> x's shape."""
        normed = F.layer_norm(x, x.shape[-1:], eps=LAYER_EPS)
        return normed * self.scale(tau, x) + self.shift(tau, x)
