"""DiMR stage: the blocks of one resolution and the lift to the next. Liu et al. 2024, arXiv:2406.09416."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.embedding import resized_table
from dinit.models.layers.init import xavier, zeroed
from dinit.models.layers.time_norm import TimeLayerNorm, TimeRMSNorm


@dataclass(frozen=True)
class StageConfig:
    """width: of the features. mlp_width: inside a block's MLP. depth: blocks, an odd number.

    The image is shrunk by image_ratio (mean of the pixels), then cut into patches of patch_size, one vector each.
    kernel_size: of the depthwise convolution in its blocks; None for blocks with attention instead.
    head_kernel: of the convolution that makes the stage's output.
    """

    width: int
    mlp_width: int
    depth: int
    patch_size: int = 1
    image_ratio: int = 1
    kernel_size: int | None = None
    head_kernel: int = 3

    @property
    def downscale(self) -> int:
        """Pixels of the image on a side of one vector."""
        return self.patch_size * self.image_ratio

    @property
    def features(self) -> int:
        """Width of the features passed on: its input and every block's output, concatenated."""
        return self.width * (self.depth + 1)


class GatedMlp(nn.Module):
    """GELU of one Linear times another Linear, and a third."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = xavier(nn.Linear(dim, hidden))
        self.value = xavier(nn.Linear(dim, hidden))
        self.out = xavier(nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        return self.out(F.gelu(self.gate(x)) * self.value(x))


class AttentionBlock(nn.Module):
    """Self-attention and a gated MLP, each after a TD-RMSNorm and added to its input."""

    def __init__(self, dim: int, hidden: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention = TimeRMSNorm(dim)
        self.qkv = xavier(nn.Linear(dim, 3 * dim, bias=False))
        self.proj = xavier(nn.Linear(dim, dim))
        self.norm_mlp = TimeRMSNorm(dim)
        self.mlp = GatedMlp(dim, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, N, dim), tau (B,) or (1,) -> (B, N, dim)."""
        qkv = self.qkv(self.norm_attention(x, tau)).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.proj(mixed))
        return x + self.dropout(self.mlp(self.norm_mlp(x, tau)))


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, then TD-RMSNorm and gated MLP; each added to its input. After Liu et al. 2022."""

    def __init__(self, dim: int, hidden: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=dim)
        self.norm_mlp = TimeRMSNorm(dim)
        self.mlp = GatedMlp(dim, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, H, W, dim), tau (B,) or (1,) -> (B, H, W, dim)."""
        x = x + self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # views: x is a channels-last map
        return x + self.dropout(self.mlp(self.norm_mlp(x, tau)))


class Lift(nn.Module):
    """Lift of a coarser stage's features to this resolution and width: norm, Linear, vectors to pixels, norm."""

    def __init__(self, features: int, width: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.norm_in = TimeLayerNorm(features)
        self.linear = xavier(nn.Linear(features, width * factor**2))
        self.norm_out = TimeLayerNorm(width)

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, H, W, features), tau (B,) or (1,) -> (B, factor * H, factor * W, width)."""
        # Features are ordered (row, column, channel) within a vector, unlike those of F.pixel_shuffle.
        x = self.linear(self.norm_in(x, tau)).unflatten(-1, (self.factor, self.factor, -1))
        return self.norm_out(x.transpose(2, 3).flatten(3, 4).flatten(1, 2), tau)


class StageHead(nn.Module):
    """TD-LayerNorm and a convolution to the output channels; zero at the start."""

    def __init__(self, width: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = TimeLayerNorm(width)
        self.conv = zeroed(nn.Conv2d(width, out_channels, kernel_size, padding=kernel_size // 2))

    def forward(self, x: Tensor, tau: Tensor) -> Tensor:
        """x (B, H, W, width), tau (B,) or (1,) -> (B, out_channels, H, W)."""
        return self.conv(self.norm(x, tau).permute(0, 3, 1, 2))


class Stage(nn.Module):
    """One resolution: blocks in a row with long skips from the first half to the second (U-ViT, Bao et al. 2023).

    below: the stage before it, if any. side: of its map, in vectors, at the configured image size. num_heads: used
    where it attends.
    """

    def __init__(
        self,
        config: StageConfig,
        below: StageConfig | None,
        *,
        side: int,
        in_channels: int,
        num_heads: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.stem = xavier(nn.Conv2d(in_channels, width, config.patch_size, stride=config.patch_size))
        self.positions = nn.Parameter(torch.empty(side, side, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.lift = None if below is None else Lift(below.features, width, below.downscale // config.downscale)

        def block() -> nn.Module:
            if config.kernel_size is not None:
                return ConvNeXtBlock(width, config.mlp_width, config.kernel_size, dropout)
            return AttentionBlock(width, config.mlp_width, num_heads, dropout)

        self.blocks = nn.ModuleList(block() for _ in range(config.depth))
        self.joins = nn.ModuleList(xavier(nn.Linear(2 * width, width)) for _ in range(config.depth // 2))

    def forward(
        self,
        x: Tensor,
        below: Tensor | None,
        tau: Tensor,
        label: Tensor | None,
        run: Callable[[nn.Module, Tensor, Tensor], Tensor],
    ) -> list[Tensor]:
        """Input of the blocks and every block's output, (B, H / downscale, W / downscale, width) each.

        x (B, in_channels, H, W): the image. below: the features of the stage before it, concatenated. tau (B,) or
        (1,). label (B, width): one token more, where it attends. run: calls a block.
        """
        h = self.enter(x, below, tau)
        rows, columns = h.shape[1:3]
        features, skips, half = [h], [], len(self.joins)
        if label is not None:
            h = torch.cat([label[:, None].to(h), h.flatten(1, 2)], dim=1)
        for i, block in enumerate(self.blocks):
            if i > half:
                h = self.joins[i - half - 1](torch.cat([h, skips.pop()], dim=-1))
            h = run(block, h, tau)
            if i < half:
                skips.append(h)
            features.append(h if label is None else h[:, 1:].unflatten(1, (rows, columns)))
        return features

    def enter(self, x: Tensor, below: Tensor | None, tau: Tensor) -> Tensor:
        """Input of the blocks (B, rows, columns, width): patches, positions and the lifted features from below."""
        if self.config.image_ratio > 1:
            x = F.avg_pool2d(x, self.config.image_ratio)
        h = self.stem(x.contiguous(memory_format=torch.channels_last)).permute(0, 2, 3, 1)
        h = h + resized_table(self.positions, *h.shape[1:3]).to(h)
        return h if below is None or self.lift is None else h + self.lift(below, tau)
