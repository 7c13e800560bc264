"""Attention within windows of the image. Liu et al. 2021 (Swin), arXiv:2103.14030."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.init import xavier


class LocalAttention(nn.Module):
    """Multi-head self-attention among the tokens of one window, with a learned bias for every offset in it.

    The windows tile the image from its corner or, shifted, from half a window outside of it; the tokens beyond
    the image are masked, so any height and width will do and the windows at an edge are smaller (as in Swin,
    where a cyclic shift and a mask give the same). An axis no longer than the window is one window, unshifted.
    The qkv features are ordered (q | k | v) x head x head_dim, as in Attention.
    """

    def __init__(self, dim: int, num_heads: int, window: int, shifted: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads, self.window, self.shifted = num_heads, window, shifted
        self.qkv = xavier(nn.Linear(dim, 3 * dim))
        self.proj = xavier(nn.Linear(dim, dim))
        self.offset_bias = nn.Parameter(0.02 * torch.randn(num_heads, 2 * window - 1, 2 * window - 1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rows: int, columns: int) -> Tensor:
        """x (B, rows * columns, dim), row by row -> (B, rows * columns, dim)."""
        down, across = self._axis(rows), self._axis(columns)
        padding = (0, 0, across.before, across.after, down.before, down.after)
        padded = F.pad(self.qkv(x).unflatten(1, (rows, columns)), padding)
        windows = padded.unflatten(1, (down.count, down.size)).unflatten(3, (across.count, across.size))
        windows = windows.unflatten(-1, (3, self.num_heads, -1))  # (B, count, size, count, size, 3, heads, d)
        q, k, v = windows.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(2, 4).flatten(3, 4)  # (B, windows * heads, T, d)
        mixed = F.scaled_dot_product_attention(q, k, v, self._bias(down, across).to(q))
        mixed = mixed.unflatten(2, (down.size, across.size))
        mixed = mixed.unflatten(
            1, (down.count, across.count, self.num_heads)
        )  # (B, count, count, heads, size, size, d)
        image = mixed.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4).flatten(1, 2)
        image = image[:, down.before : down.before + rows, across.before : across.before + columns]
        return self.dropout(self.proj(image.flatten(1, 2)))

    def _axis(self, length: int) -> _Axis:
        size = min(self.window, length)
        before = size // 2 if self.shifted and length > self.window else 0
        return _Axis(length, size, before, math.ceil((before + length) / size))

    def _bias(self, down: _Axis, across: _Axis) -> Tensor:
        """(1, windows * heads, T, T): what is added to q . k; minus infinity for keys beyond the image."""
        device = self.offset_bias.device
        dy, dx = (axis.offsets(device) + self.window - 1 for axis in (down, across))
        bias = self.offset_bias[:, dy[:, None, :, None], dx[None, :, None, :]]  # (heads, size, size, size, size)
        bias = bias.flatten(3, 4).flatten(1, 2)  # (heads, T, T)
        inside = down.inside(device)[:, None, :, None] & across.inside(device)[None, :, None, :]
        inside = inside.flatten(2, 3).flatten(0, 1)[:, None, None, :]  # (windows, 1, 1, T)
        return bias.masked_fill(~inside, -math.inf).flatten(0, 1)[None]


class _Axis:
    """One axis of an image in `count` windows of `size` tokens, the first of which starts `before` outside."""

    def __init__(self, length: int, size: int, before: int, count: int) -> None:
        self.length, self.size, self.before, self.count = length, size, before, count
        self.after = count * size - before - length

    def offsets(self, device: torch.device) -> Tensor:
        """(size, size): query's place minus key's place."""
        place = torch.arange(self.size, device=device)
        return place[:, None] - place

    def inside(self, device: torch.device) -> Tensor:
        """(count, size): whether a window's token lies in the image."""
        place = torch.arange(self.count * self.size, device=device) - self.before
        return ((place >= 0) & (place < self.length)).unflatten(0, (self.count, self.size))
