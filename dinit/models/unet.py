"""U-Net of convolutions and self-attention, conditioned by scale and shift of its group norms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.adm_blocks import Halve
from dinit.models.layers.blocks import run_block
from dinit.models.layers.checks import check_divides
from dinit.models.layers.embedding import LabelEmbedding, TimeEmbedding
from dinit.models.layers.feature_maps import ConvHead, SpatialAttention
from dinit.models.layers.fir import ConvUp
from dinit.models.layers.init import zeroed
from dinit.models.layers.linear import conv1x1
from dinit.models.layers.modulation import modulate
from dinit.models.layers.presets import tiny_preset
from dinit.models.layers.skips import Skips


class ResBlock(nn.Module):
    """Norm, SiLU, conv, norm scaled and shifted by the condition, SiLU, conv; added to the input.

    Ho et al. 2020 with the adaptive group norm of Dhariwal & Nichol 2021. conv_2 starts at zero.
    """

    def __init__(self, in_width: int, width: int, cond_dim: int, num_groups: int, dropout: float) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(num_groups, in_width)
        self.conv_1 = nn.Conv2d(in_width, width, 3, padding=1)
        self.condition = nn.Linear(cond_dim, 2 * width)
        self.norm_2 = nn.GroupNorm(num_groups, width)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.shortcut = nn.Identity() if in_width == width else nn.Conv2d(in_width, width, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, in_width, H, W), c (B, cond_dim) -> (B, width, H, W)."""
        shift, scale = self.condition(F.silu(c))[:, :, None, None].chunk(2, dim=1)
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = self.conv_2(self.dropout(F.silu(modulate(self.norm_2(h), shift, scale))))
        return conv1x1(self.shortcut, x) + h


class UNetBlock(nn.Module):
    """A ResBlock, then attention and a doubling of the resolution where there are any."""

    def __init__(self, res: ResBlock, attention: SpatialAttention | None, upsample: ConvUp | None = None) -> None:
        super().__init__()
        self.res = res
        self.attention = attention if attention is not None else nn.Identity()
        self.upsample = upsample if upsample is not None else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, in_width, H, W), c (B, cond_dim) -> (B, width, H, W), or (B, width, 2H, 2W) with upsample."""
        return self.upsample(self.attention(self.res(x, c)))


@BACKBONES.register("unet")
@config_from_fields
class UNet(Backbone):
    """Convolutional U-Net with self-attention; residual blocks scaled and shifted by time and label.

    The residual block of Ho et al. 2020 (arXiv:2006.11239) with the adaptive group norm of Dhariwal & Nichol 2021
    (arXiv:2105.05233); small, for a user's data sets. No published weights.

    Args:
        image_size: height = width it is configured for; others work if they are multiples of size_multiple, which
            is 2^(levels - 1).
        in_channels: channels of x.
        channels: channels of the first level.
        channel_mult: channels of each level as a multiple of `channels`; the resolution halves between levels.
        blocks_per_level: on the way down; one more on the way up.
        attention_resolutions: sides of the feature maps, at image_size, that have attention (the bottom is one of
            them if its side is listed).
        num_groups: of the group norms; divides the channels that they act on.
        num_heads: heads of an attention; divides the channels that it acts on.
        num_classes: classes.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: before the last convolution of a block, in [0, 1).

    Raises:
        ValueError: sizes that do not fit together.
    """

    channels_last: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(
            channels=16,
            channel_mult=(1, 2),
            blocks_per_level=1,
            attention_resolutions=(4,),
            num_groups=4,
            num_heads=2,
        )
    }

    image_size: int = 32
    in_channels: int = 3
    channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    blocks_per_level: int = 2
    attention_resolutions: Sequence[int] = (16,)
    num_groups: int = 32
    num_heads: int = 4
    num_classes: int = 10
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0

    def build(self) -> None:
        sides = [self.image_size >> level for level in range(len(self.channel_mult))]
        widths = [self.channels * multiple for multiple in self.channel_mult]
        _check_levels(sides, widths, self.attention_resolutions, self.num_heads)
        self.check_divides("num_groups", self.num_groups, "channels", self.channels)
        cond_dim = 4 * self.channels

        def block(in_width: int, level: int, up: bool = False) -> UNetBlock:
            width, attend = widths[level], sides[level] in self.attention_resolutions
            return UNetBlock(
                ResBlock(in_width, width, cond_dim, self.num_groups, self.dropout),
                SpatialAttention(nn.GroupNorm(self.num_groups, width), self.num_heads) if attend else None,
                ConvUp(width) if up else None,
            )

        self.stem = nn.Conv2d(self.in_channels, self.channels, 3, padding=1)
        self.time_embedding = TimeEmbedding(cond_dim)
        self.label_embedding = LabelEmbedding(self.num_classes, cond_dim, self.null_class)
        self.encoder, skips = _build_encoder(block, widths, self.channels, self.blocks_per_level)
        bottom = len(widths) - 1
        self.middle = nn.ModuleList(block(widths[bottom], bottom) for _ in range(2))
        self.decoder = _build_decoder(block, widths, skips, self.blocks_per_level)
        self.head = ConvHead(nn.GroupNorm(self.num_groups, widths[0]), self.out_channels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = Skips(self)
        skips.keep(x)
        for block in self.encoder:
            x = run_block(self, block, x, c)
            skips.keep(x)
        for block in self.middle:
            x = run_block(self, block, x, c)
        for block in self.decoder:
            x = run_block(self, block, torch.cat(skips.take(x), dim=1), c)
        return self.head(x)


def _build_encoder(
    block: Callable[..., UNetBlock], widths: list[int], channels: int, count: int
) -> tuple[nn.ModuleList, list[int]]:
    """Way down, and the widths of its skips, the stem's output first."""
    blocks, skips = nn.ModuleList(), [channels]
    for level, width in enumerate(widths):
        for _ in range(count):
            blocks.append(block(skips[-1], level))
            skips.append(width)
        if level < len(widths) - 1:
            blocks.append(Halve(width, with_conv=True))
            skips.append(width)
    return blocks, skips


def _build_decoder(
    block: Callable[..., UNetBlock], widths: list[int], skips: list[int], count: int
) -> nn.ModuleList:
    """Way up: count + 1 blocks a level, each on the output from below and one skip, last in first out."""
    blocks, width, skips = nn.ModuleList(), widths[-1], list(skips)
    for level in reversed(range(len(widths))):
        for index in range(count + 1):
            blocks.append(block(width + skips.pop(), level, up=index == count and level > 0))
            width = widths[level]
    return blocks


def _check_levels(sides: list[int], widths: list[int], attention: Sequence[int], num_heads: int) -> None:
    """ValueError where widths, heads and attention resolutions do not fit together."""
    if not widths or min(widths) < 1:
        raise ValueError(f"UNet: channels * channel_mult must be one or more positive widths, got {widths}")
    unknown = sorted(set(attention) - set(sides))
    if unknown:
        raise ValueError(f"UNet: attention_resolutions must be among the levels' sides {sides}, got {unknown}")
    for side, width in zip(sides, widths, strict=True):
        if side in attention:
            check_divides("UNet", "num_heads", num_heads, "the width of every level with attention", width)
