"""Transformer layers: patch embedding, attention and MLP."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.init import xavier
from dinit.models.layers.linear import linear_gelu


class PatchEmbed(nn.Module):
    """One token a patch: a convolution whose stride is its kernel."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = xavier(nn.Conv2d(in_channels, dim, patch_size, stride=patch_size))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, H/p * W/p, dim), row by row."""
        # Laid out token by token: every block keeps the layout of its input, and strided features make norms slow.
        return self.proj(x).flatten(2).transpose(1, 2).contiguous()


def unpatchify(tokens: Tensor, rows: int, columns: int, patch_size: int) -> Tensor:
    """(B, rows * columns, p * p * C), features ordered (p_row, p_column, C) -> (B, C, H, W)."""
    p = patch_size
    patches = tokens.unflatten(1, (rows, columns)).unflatten(-1, (p, p, -1))  # (B, rows, columns, p, p, C)
    return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class Attention(nn.Module):
    """Multi-head self-attention; the qkv features are ordered (q | k | v) x head x head_dim."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = xavier(nn.Linear(dim, 3 * dim))
        self.proj = xavier(nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, dim) -> (B, N, dim)."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.dropout(self.proj(mixed.transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    """Linear, GELU (its tanh approximation), Linear."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = xavier(nn.Linear(dim, hidden))
        self.fc2 = xavier(nn.Linear(hidden, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, dim) -> (B, N, dim)."""
        return self.dropout(self.fc2(self.dropout(linear_gelu(self.fc1, x))))
