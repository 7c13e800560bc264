"""Time-dependent attention (TMSA), the layer of DiffiT's two models. Hatamizadeh et al. 2023, arXiv:2312.02139."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.init import xavier
from dinit.models.layers.transformer import Mlp

NORM_EPS = 1e-6


def stretch(size: int, new: int, like: Tensor) -> Tensor:
    """(2 * new - 1, 2 * size - 1): linear interpolation of a function of the offsets -(size - 1) .. size - 1.

    Offset j of a window of `new` reads offset j * (size - 1) / (new - 1): the ends meet, and 0 stays 0. In the
    dtype (float32 at least) and on the device of `like`.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    wanted = torch.arange(1 - new, new, dtype=dtype, device=like.device) * ((size - 1) / max(new - 1, 1))
    known = torch.arange(1 - size, size, dtype=dtype, device=like.device)
    return (1 - (wanted[:, None] - known).abs()).clamp(min=0)


class RelativeBias(nn.Module):
    """A learned bias for every head and every offset of query to key in a window. Liu et al. 2021 (Swin)."""

    def __init__(self, num_heads: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.table = nn.Parameter(torch.empty(num_heads, 2 * window - 1, 2 * window - 1))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, rows: int, columns: int) -> Tensor:
        """(num_heads, N, N) for the N = rows * columns tokens of a window, queries first, tokens row by row.

        The table is interpolated for a window of another size.
        """
        table = self.table
        if (rows, columns) != (self.window, self.window):
            by_row, by_column = (stretch(self.window, count, table) for count in (rows, columns))
            table = by_row @ table.to(by_row) @ by_column.T
        # View [r, c, i, j] is the table at row r + i, column c + j. Counted from the last key back, i is
        # rows - 1 - key row, and r + i the table's place for query row r.
        views = table.unfold(1, rows, 1).unfold(2, columns, 1)  # (heads, rows, columns, rows, columns)
        return views.flip(3, 4).flatten(3).flatten(1, 2)


class TimeAttention(nn.Module):
    """TMSA: queries, keys and values are linear in the token and in the condition. Hatamizadeh et al. 2023."""

    def __init__(self, dim: int, cond_dim: int, num_heads: int, window: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = xavier(nn.Linear(dim, 3 * dim))
        self.qkv_time = xavier(nn.Linear(cond_dim, 3 * dim))
        self.bias = RelativeBias(num_heads, window)
        self.proj = xavier(nn.Linear(dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, c: Tensor, rows: int, columns: int) -> Tensor:
        """x (B, windows, rows * columns, dim), c (B, cond_dim) -> x's shape; a window attends to itself only."""
        qkv = (self.qkv(x) + self.qkv_time(c)[:, None, None]).flatten(0, 1)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B * windows, heads, N, d)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(rows, columns).to(q)[None])
        return self.dropout(self.proj(mixed.transpose(1, 2).flatten(2))).unflatten(0, x.shape[:2])


class DiffiTBlock(nn.Module):
    """TMSA and MLP, each after a LayerNorm and added to its input. No gates, no adaptive norm."""

    def __init__(
        self, dim: int, cond_dim: int, num_heads: int, window: int, mlp_ratio: float, dropout: float
    ) -> None:
        super().__init__()
        self.attention = TimeAttention(dim, cond_dim, num_heads, window, dropout)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), dropout)

    def forward(self, x: Tensor, c: Tensor, rows: int, columns: int) -> Tensor:
        """x (B, windows, rows * columns, dim), c (B, cond_dim) -> x's shape."""
        dim = x.shape[-1:]
        x = x + self.attention(F.layer_norm(x, dim, eps=NORM_EPS), c, rows, columns)
        return x + self.mlp(F.layer_norm(x, dim, eps=NORM_EPS))
