"""Adaptive normalisation: the condition sets shift, scale and gate of a block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Modulation(nn.Module):
    """SiLU and one Linear from the condition to `chunks` vectors; zero at the start.

    With all chunks zero, shift and scale do nothing and a gate closes its branch, so that a fresh block is the
    identity: adaLN-Zero, Peebles & Xie 2023.
    """

    def __init__(self, cond_dim: int, dim: int, chunks: int) -> None:
        super().__init__()
        self.chunks = chunks
        self.linear = nn.Linear(cond_dim, chunks * dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:
        """c (B, cond_dim) -> `chunks` tensors (B, dim)."""
        return self.linear(F.silu(c)).chunk(self.chunks, dim=-1)

    def tokens(self, c: Tensor) -> tuple[Tensor, ...]:
        """The same as (B, 1, dim), to act on tokens (B, N, dim)."""
        return self.linear(F.silu(c))[:, None, :].chunk(self.chunks, dim=-1)

    def maps(self, c: Tensor) -> tuple[Tensor, ...]:
        """The same as (B, dim, 1, 1), to act on feature maps (B, dim, H, W)."""
        return self.linear(F.silu(c))[:, :, None, None].chunk(self.chunks, dim=1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x * (1 + scale) + shift, so that scale = 0 leaves x as it is."""
    return x * (1 + scale) + shift


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of a feature map (B, C, H, W), without affine weights."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.channels = channels
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # A view where x is channels-last; the result is channels-last in any case.
        normed = F.layer_norm(x.permute(0, 2, 3, 1), (self.channels,), eps=self.eps)
        return normed.permute(0, 3, 1, 2)
