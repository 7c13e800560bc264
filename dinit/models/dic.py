"""DiC: a U-Net of plain 3x3 convolutions. Tian et al. 2025, arXiv:2501.00603."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.blocks import run_block, run_layer
from dinit.models.layers.checks import check_divides
from dinit.models.layers.embedding import LabelEmbedding, TimeEmbedding
from dinit.models.layers.init import xavier, zeroed
from dinit.models.layers.linear import conv1x1
from dinit.models.layers.modulation import ChannelLayerNorm, Modulation, gated, modulate
from dinit.models.layers.presets import imagenet_presets, tiny_preset
from dinit.models.layers.resample import ShuffleDown, ShuffleUp
from dinit.models.layers.skips import Skips

_SIZES = {
    "S": {"hidden_size": 96, "depth": (6, 6, 5, 6, 6)},
    "B": {"hidden_size": 192, "depth": (6, 6, 5, 6, 6)},
    "XL": {"hidden_size": 384, "depth": (7, 7, 8, 7, 7)},
    "H": {"hidden_size": 384, "depth": (14, 14, 10, 14, 14)},
}


def group_norm(channels: int) -> nn.GroupNorm:
    """Groups of four channels, but at most 32 groups. ValueError for channels that these do not divide."""
    groups = min(32, max(channels // 4, 1))
    check_divides("DiC", "the number of groups, min(32, channels // 4),", groups, "channels", channels)
    return nn.GroupNorm(groups, channels)


class DiCBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and GELU; the second is modulated and gated by the condition."""

    def __init__(self, in_width: int, width: int, cond_dim: int, dropout: float) -> None:
        super().__init__()
        self.modulation = Modulation(cond_dim, width, chunks=3, gates=(0,))
        self.norm_1 = group_norm(in_width)
        self.conv_1 = nn.Conv2d(in_width, width, 3, padding=1)
        self.norm_2 = group_norm(width)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if in_width == width else nn.Conv2d(in_width, width, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, in_width, H, W), c (B, cond_dim) -> (B, width, H, W)."""
        gate, scale, shift = self.modulation(c, x)
        h = self.conv_1(F.gelu(self.norm_1(x)))
        h = self.conv_2(self.dropout(F.gelu(modulate(self.norm_2(h), shift, scale))))
        return gated(conv1x1(self.shortcut, x), gate, h)


class DiCHead(nn.Module):
    """A 3x3 convolution, modulated norm, a 3x3 convolution to the output channels; the last is zero at first."""

    def __init__(self, dim: int, out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(dim, dim, 3, padding=1)
        self.modulation = Modulation(dim, dim, chunks=2)
        self.norm = ChannelLayerNorm(dim)
        self.conv_out = zeroed(nn.Conv2d(dim, out_channels, 3, padding=1))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, dim, H, W), c (B, dim) -> (B, out_channels, H, W)."""
        shift, scale = self.modulation(c, x)
        return self.conv_out(modulate(self.norm(self.conv_in(x)), shift, scale))


def _check_stages(depth: Sequence[int], channel_mult: Sequence[int], skip_stride: int) -> None:
    """ValueError for stages that do not pair up around the bottom."""
    for argument, values in {"depth": depth, "channel_mult": channel_mult}.items():
        if len(values) % 2 == 0 or len(values) != len(depth) or min(values) < 1:
            raise ValueError(
                f"DiC: {argument} must be an odd number of positive integers, as many as depth has, "
                f"got {tuple(values)} with depth = {tuple(depth)}"
            )
    for down, up in zip(depth[: len(depth) // 2], depth[::-1], strict=False):
        if math.ceil(down / skip_stride) != math.ceil(up / skip_stride):
            raise ValueError(
                f"DiC: stages of {down} and {up} blocks on one level have different numbers of skips with "
                f"skip_stride = {skip_stride}; give both the same depth"
            )
    half = len(depth) // 2
    inner = channel_mult[1:half], channel_mult[-2:half:-1]
    if tuple(inner[0]) != tuple(inner[1]) or channel_mult[-1] not in channel_mult[: half + 1]:
        raise ValueError(
            f"DiC: channel_mult must be the same down and up, except that its last entry may be any level's "
            f"multiple, got {tuple(channel_mult)}"
        )


@BACKBONES.register("dic")
@config_from_fields
class DiC(Backbone):
    """Diffusion model of 3x3 convolutions alone (Tian et al. 2025, arXiv:2501.00603); presets S, B, XL, H.

    Fully convolutional: any height and width that are multiples of 2^(levels - 1), which is 4 in the presets. The
    condition is the label embeddings of the levels, concatenated: (B, 7 * hidden_size) in the presets.

    Args:
        image_size: height = width it is configured for.
        in_channels: channels of x; 4 for the latents of Stable Diffusion.
        hidden_size: channels of the first level.
        depth: blocks of every stage.
        channel_mult: width of every stage as a multiple of hidden_size, down the levels and up again, an odd number
            of stages.
        skip_stride: skips start from every skip_stride-th encoder block, counted from the end of its stage, and end
            before every skip_stride-th decoder block, so both stages of a level need the same number of them.
        num_classes: classes.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: before the second convolution of a block, in [0, 1).

    Raises:
        ValueError: sizes that do not fit together.
    """

    channels_last: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(hidden_size=16, depth=(2, 1, 1, 1, 2)),
        **imagenet_presets(_SIZES),
    }

    image_size: int = 32
    in_channels: int = 4
    hidden_size: int = 96
    depth: Sequence[int] = (6, 6, 5, 6, 6)
    channel_mult: Sequence[int] = (1, 2, 4, 2, 1)
    skip_stride: int = 3
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0

    def smallest_size(self) -> int:
        return 2 ** (len(self.depth) // 2)

    def build(self) -> None:
        depth, channel_mult, levels = self.depth, self.channel_mult, len(self.depth) // 2 + 1
        _check_stages(depth, channel_mult, self.skip_stride)
        widths = [self.hidden_size * multiple for multiple in channel_mult]
        for width in widths[1:levels]:
            self.check_divides("4 (of the pixel shuffle)", 4, "a level's width", width)
        self.widths = widths[:levels]
        # Which level's condition each stage takes. The last stage may be wider than the first level.
        same_width = [i for i, multiple in enumerate(channel_mult[:levels]) if multiple == channel_mult[-1]]
        self.levels_of_stages = [*range(levels), *range(levels - 2, 0, -1), same_width[0]][: len(depth)]

        def stage(i: int, skip_width: int = 0) -> nn.ModuleList:
            cond_dim = self.widths[self.levels_of_stages[i]]
            joins = [skip_width if b % self.skip_stride == 0 else 0 for b in range(depth[i])]
            return nn.ModuleList(DiCBlock(widths[i] + extra, widths[i], cond_dim, self.dropout) for extra in joins)

        self.stem = xavier(nn.Conv2d(self.in_channels, widths[0], 3, padding=1))
        self.time_embeddings = nn.ModuleList(TimeEmbedding(width) for width in self.widths)
        self.label_embeddings = nn.ModuleList(
            LabelEmbedding(self.num_classes, width, self.null_class) for width in self.widths
        )
        self.encoder = nn.ModuleList(stage(i) for i in range(levels - 1))
        self.downs = nn.ModuleList(ShuffleDown(widths[i], widths[i + 1]) for i in range(levels - 1))
        self.bottom = stage(levels - 1)
        self.ups = nn.ModuleList(ShuffleUp(widths[i - 1], widths[i]) for i in range(levels, len(depth)))
        self.decoder = nn.ModuleList(stage(i, widths[-1 - i]) for i in range(levels, len(depth)))
        self.head = DiCHead(widths[-1], self.out_channels)

    def embed(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0..num_classes -> (B, 7 * hidden_size in the presets), a part for each level."""
        return torch.cat([table(labels) for table in self.label_embeddings], dim=-1)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        times = [embedding(noise_label, x.dtype) for embedding in self.time_embeddings]
        parts = [time + part for time, part in zip(times, cond.split(self.widths, dim=-1), strict=True)]
        conditions = iter([parts[level] for level in self.levels_of_stages])

        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = Skips(self)
        for blocks, down in zip(self.encoder, self.downs, strict=True):
            x = run_layer(self, down, self._encode(blocks, x, next(conditions), skips))
        x = self._encode(self.bottom, x, next(conditions), None)
        for up, blocks in zip(self.ups, self.decoder, strict=True):
            x = self._decode(blocks, run_layer(self, up, x), next(conditions), skips)
        return self.head(x, parts[self.levels_of_stages[-1]])

    def _encode(self, blocks: Any, x: Tensor, c: Tensor, skips: Skips | None) -> Tensor:
        """Run the blocks in turn; skips keeps the outputs that the decoder needs."""
        for b, block in enumerate(blocks):
            x = run_block(self, block, x, c)
            if skips is not None and (len(blocks) - 1 - b) % self.skip_stride == 0:
                skips.keep(x)
        return x

    def _decode(self, blocks: Any, x: Tensor, c: Tensor, skips: Skips) -> Tensor:
        """Run the blocks in turn; joins the newest of skips before every skip_stride-th."""
        for b, block in enumerate(blocks):
            if b % self.skip_stride == 0:
                x = torch.cat(skips.take(x), dim=1)
            x = run_block(self, block, x, c)
        return x
