"""Embeddings of the noise label, the class label and token positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.init import small_normal


def sinusoid(noise_label: Tensor, features: int = 256, max_period: float = 1e4, freq_shift: float = 0.0) -> Tensor:
    """Sinusoids [cos, sin] of label times max_period^(-i / (half - freq_shift)), half = features // 2.

    noise_label (B,) float, unscaled -> (B, features) in the label's dtype. Vaswani et al. 2017, in the
    arrangement of Dhariwal & Nichol 2021 that DiT and its descendants have. freq_shift: 1 makes the last
    frequency 1 / max_period, as Ho et al. 2020, score_sde and diffusers' DiT have it.
    """
    half = features // 2
    index = torch.arange(half, dtype=noise_label.dtype, device=noise_label.device)
    angles = noise_label[:, None] * torch.exp(index * (-math.log(max_period) / (half - freq_shift)))
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """Noise label -> sinusoid -> Linear, SiLU, Linear. features, freq_shift: of the sinusoid."""

    def __init__(self, dim: int, features: int = 256, freq_shift: float = 0.0) -> None:
        super().__init__()
        self.features, self.freq_shift = features, freq_shift
        self.mlp = nn.Sequential(
            small_normal(nn.Linear(features, dim)), nn.SiLU(), small_normal(nn.Linear(dim, dim))
        )

    def forward(self, noise_label: Tensor, dtype: torch.dtype) -> Tensor:
        """noise_label (B,) or (1,) -> (B, dim) or (1, dim), for activations of the given dtype.

        The sinusoid is float32 at least: bf16 has the same number for steps 998 and 999.
        """
        label = noise_label.to(torch.promote_types(dtype, torch.float32))
        return self.mlp(sinusoid(label, self.features, freq_shift=self.freq_shift).to(dtype))


class LabelEmbedding(nn.Module):
    """A table of a row for each class, and with null_class of one more, the last, for the null label."""

    def __init__(self, num_classes: int, dim: int, null_class: bool = True) -> None:
        super().__init__()
        self.table = nn.Embedding(num_classes + null_class, dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0..num_classes, without a null label below num_classes -> (B, dim)."""
        return self.table(labels)


def sincos_positions(dim: int, height: int, width: int, device: torch.device | None = None) -> Tensor:
    """Fixed 2-d sin-cos position table of DiT: (height * width, dim) float32, tokens row by row.

    The first half of the channels encodes the column, the second half the row; each half is [sin, cos].
    dim must be a multiple of 4. Computed in float64, except on devices that have none (MPS).
    """
    dtype = torch.float32 if device is not None and device.type == "mps" else torch.float64
    quarter = dim // 4
    index = torch.arange(quarter, dtype=dtype, device=device)
    frequency = torch.exp(index * (-math.log(1e4) / quarter))

    def encode(count: int) -> Tensor:
        angles = torch.arange(count, dtype=dtype, device=device)[:, None] * frequency
        return torch.cat([angles.sin(), angles.cos()], dim=-1)  # (count, dim // 2)

    columns = encode(width)[None, :, :].expand(height, width, dim // 2)
    rows = encode(height)[:, None, :].expand(height, width, dim // 2)
    return torch.cat([columns, rows], dim=-1).reshape(height * width, dim).float()


def resized_table(table: Tensor, rows: int, columns: int) -> Tensor:
    """Learned position table (side, side, D), for another size resized bicubically to (rows, columns, D).

    A resized one is float32 at least.
    """
    if (rows, columns) == tuple(table.shape[:2]):
        return table
    maps = table.permute(2, 0, 1)[None].to(torch.promote_types(table.dtype, torch.float32))
    return F.interpolate(maps, size=(rows, columns), mode="bicubic", align_corners=False)[0].permute(1, 2, 0)


class SinCosPositions(nn.Module):
    """Position table of `sincos_positions`, kept for one number of patches and computed for others.

    It is not saved: it is a function of the sizes, and a saved copy could disagree with them.

    Args:
        dim: features of a token, a multiple of 4.
        side: patches on a side of the square image that the table is kept for.
    """

    table: Tensor

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        self.dim, self.side = dim, side
        self.register_buffer("table", sincos_positions(dim, side, side), persistent=False)

    def forward(self, rows: int, columns: int) -> Tensor:
        """Table of rows * columns patches, (rows * columns, dim)."""
        if rows == columns == self.side:
            return self.table
        return sincos_positions(self.dim, rows, columns, self.table.device)
