"""DiffiT in image space: a U of windowed, time-dependent attention. Hatamizadeh et al. 2023, arXiv:2312.02139.

It follows the paper; neither code nor weights of this model were published. From the paper: the attention, the
residual block (its Eq. 9 and 10), the U with a skip at every resolution, convolutions between resolutions. Not
known to be the paper's, and our choice: widths, heads, windows, numbers of blocks, how skips are joined, the head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.blocks import run_blocks, run_layer
from dinit.models.layers.checks import check_divides
from dinit.models.layers.embedding import LabelEmbedding, TimeEmbedding
from dinit.models.layers.feature_maps import ConvHead
from dinit.models.layers.presets import tiny_preset
from dinit.models.layers.skips import Skips
from dinit.models.layers.time_attention import DiffiTBlock

# The data sets and image sizes of the paper, unconditional as there; the other numbers are ours.
_CIFAR10 = {"image_size": 32, "in_channels": 3, "channel_mult": (1, 2, 2), "num_classes": 0}
_FFHQ = {"image_size": 64, "in_channels": 3, "channel_mult": (1, 2, 2, 2), "num_classes": 0}


def to_windows(x: Tensor, window: int) -> Tensor:
    """(B, C, H, W), H and W multiples of window -> (B, windows, window^2, C), row by row within and without."""
    x = x.permute(0, 2, 3, 1).unflatten(2, (-1, window)).unflatten(1, (-1, window))  # (B, R, w, Q, w, C)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def from_windows(x: Tensor, window: int, rows: int) -> Tensor:
    """The inverse of to_windows, for a map of so many rows; channels-last in memory."""
    x = x.unflatten(2, (window, window)).unflatten(1, (rows // window, -1))  # (B, R, Q, w, w, C)
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class DiffiTResBlock(nn.Module):
    """GroupNorm, SiLU and a 3x3 convolution, then TMSA and MLP in windows; all added to the input."""

    def __init__(
        self,
        width: int,
        cond_dim: int,
        *,
        num_heads: int,
        window: int,
        num_groups: int,
        mlp_ratio: float,
        dropout: float,
    ) -> None:
        super().__init__()
        self.window = window
        self.norm = nn.GroupNorm(num_groups, width)
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.transformer = DiffiTBlock(width, cond_dim, num_heads, window, mlp_ratio, dropout)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, width, H, W) with H and W multiples of the window, c (B, cond_dim) -> x's shape."""
        h = to_windows(self.conv(F.silu(self.norm(x))), self.window)
        h = self.transformer(h, c, self.window, self.window)
        return x + from_windows(h, self.window, x.shape[2])


class Up(nn.Module):
    """Transposed convolution of stride 2, joined with the skip, and a 3x3 convolution to the level's width."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(in_width, width, 4, stride=2, padding=1)
        self.join = nn.Conv2d(2 * width, width, 3, padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x (B, in_width, H, W), skip (B, width, 2H, 2W) -> (B, width, 2H, 2W)."""
        return self.join(torch.cat([self.conv(x), skip], dim=1))


@BACKBONES.register("diffit-unet")
@config_from_fields
class DiffiTUNet(Backbone):
    """Image-space DiffiT, from the paper alone (Hatamizadeh et al. 2023, arXiv:2312.02139).

    Presets cifar10-32 and ffhq-64 carry the paper's data sets and image sizes. Their widths, blocks, heads and
    windows are ours, so they are not expected to have the parameter counts of the paper's models, which were not
    published.

    Args:
        image_size: height = width it is configured for; others work if they are multiples of
            window * 2^(levels - 1).
        in_channels: channels of x.
        channels: unit of the widths.
        channel_mult: channels of each level as a multiple of `channels`.
        blocks_per_level: on the way down, the bottom included, and on the way up.
        window: pixels on a side of the squares within which attention acts.
        num_heads: heads of an attention; divides every level's channels.
        num_groups: of the group norms; divides every level's channels.
        mlp_ratio: width of the MLP over that of its level.
        num_classes: 0, as in the paper: there is no label table, time alone conditions.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: after attention and in the MLP, in [0, 1).

    Raises:
        ValueError: sizes that do not fit together.
    """

    channels_last: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(
            channels=16, channel_mult=(1, 2), blocks_per_level=1, window=4, num_heads=2, num_groups=4
        ),
        "cifar10-32": _CIFAR10,
        "ffhq-64": _FFHQ,
    }

    image_size: int = 32
    in_channels: int = 3
    channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2)
    blocks_per_level: int = 4
    window: int = 8
    num_heads: int = 4
    num_groups: int = 32
    mlp_ratio: float = 4.0
    num_classes: int = 0
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0

    def smallest_size(self) -> int:
        return self.window * 2 ** max(len(self.channel_mult) - 1, 0)

    def build(self) -> None:
        self.check_positive(mlp_width=int(self.channels * self.mlp_ratio))
        widths = _widths(self.channels, self.channel_mult, self.num_heads, self.num_groups)
        levels = len(widths)
        self.cond_dim = 4 * self.channels
        block = partial(
            DiffiTResBlock,
            cond_dim=self.cond_dim,
            num_heads=self.num_heads,
            window=self.window,
            num_groups=self.num_groups,
            mlp_ratio=self.mlp_ratio,
            dropout=self.dropout,
        )

        def level(width: int) -> nn.ModuleList:
            return nn.ModuleList(block(width) for _ in range(self.blocks_per_level))

        self.stem = nn.Conv2d(self.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(self.cond_dim)
        self.label_embedding = (
            LabelEmbedding(self.num_classes, self.cond_dim, self.null_class) if self.num_classes else None
        )
        self.encoder = nn.ModuleList(level(width) for width in widths[:-1])
        self.downs = nn.ModuleList(
            nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1) for i in range(levels - 1)
        )
        self.bottom = level(widths[-1])
        self.ups = nn.ModuleList(Up(widths[i + 1], widths[i]) for i in reversed(range(levels - 1)))
        self.decoder = nn.ModuleList(level(width) for width in widths[:-1][::-1])
        self.head = ConvHead(nn.GroupNorm(self.num_groups, widths[0]), self.out_channels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = Skips(self)
        blocks: Any
        for blocks, down in zip(self.encoder, self.downs, strict=True):
            x = run_blocks(self, blocks, x, c)
            skips.keep(x)
            x = run_layer(self, down, x)
        x = run_blocks(self, self.bottom, x, c)
        for up, blocks in zip(self.ups, self.decoder, strict=True):
            x = run_blocks(self, blocks, up(*skips.take(x)), c)
        return self.head(x)


def _widths(channels: int, channel_mult: Sequence[int], num_heads: int, num_groups: int) -> list[int]:
    """Every level's. ValueError for none, for one that is not positive or that heads or groups do not divide."""
    widths = [channels * multiple for multiple in channel_mult]
    if not widths or min(widths) < 1:
        raise ValueError(f"DiffiTUNet: channel_mult must be one or more positive numbers, got {channel_mult}")
    for width in widths:
        check_divides("DiffiTUNet", "num_heads", num_heads, "every level's width", width)
        check_divides("DiffiTUNet", "num_groups", num_groups, "every level's width", width)
    return widths
