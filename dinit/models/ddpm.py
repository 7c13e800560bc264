"""DDPM's U-Net as score_sde trained it. Ho et al. 2020, arXiv:2006.11239; Song et al. 2021, arXiv:2011.13456."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.blocks import run_blocks, run_layer
from dinit.models.layers.embedding import LabelEmbedding, TimeEmbedding
from dinit.models.layers.feature_maps import ConvHead
from dinit.models.layers.fir import ConvDown, ConvUp
from dinit.models.layers.presets import tiny_preset
from dinit.models.layers.score_unet import (
    CIFAR10,
    ScoreBlock,
    build_levels,
    check_levels,
    decode,
    encode,
    fan_average,
    group_norm,
)
from dinit.models.layers.skips import Skips

_CIFAR = {**CIFAR10, "blocks_per_level": 2}


@BACKBONES.register("ddpm")
@config_from_fields
class DDPM(Backbone):
    """DDPM's U-Net (Ho et al. 2020, arXiv:2006.11239) in the arrangement of score_sde.

    The published networks are unconditional. Any height and width that are multiples of 2^(levels - 1).

    Args:
        image_size: height = width it is configured for.
        in_channels: channels of x.
        channels: channels of the stem, even.
        channel_mult: channels of each level as a multiple of `channels`.
        blocks_per_level: on the way down; one more on the way up.
        attention_levels: those (0 is full resolution) with single-head attention; the middle has it in any case.
        num_groups: of every norm; divides the channels.
        num_classes: above 0, a label embedding (not in the published networks) is added to that of the time.
        null_class: whether the label table has a row, the last, for the null label, which guidance needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: before the last convolution of a block, in [0, 1).

    Raises:
        ValueError: sizes that do not fit together.
    """

    channels_last: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(
            channels=16, channel_mult=(1, 2), blocks_per_level=1, attention_levels=(1,), num_groups=4
        ),
        "cifar10": _CIFAR,
        "256": {**_CIFAR, "image_size": 256, "channel_mult": (1, 1, 2, 2, 4, 4), "attention_levels": (4,)},
    }

    image_size: int = 32
    in_channels: int = 3
    channels: int = 128
    channel_mult: Sequence[int] = (1, 2, 2, 2)
    blocks_per_level: int = 2
    attention_levels: Sequence[int] = (1,)
    num_groups: int = 32
    num_classes: int = 0
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0

    def build(self) -> None:
        channels = self.channels
        widths = check_levels("DDPM", channels, self.channel_mult, self.attention_levels)
        self.cond_dim = 4 * channels
        norm = partial(group_norm, "DDPM", self.num_groups)

        def block(in_width: int, width: int, attend: bool) -> ScoreBlock:
            return ScoreBlock(in_width, width, self.cond_dim, self.dropout, norm=norm, attend=attend)

        self.stem = nn.Conv2d(self.in_channels, channels, 3, padding=1)
        self.time_embedding = TimeEmbedding(self.cond_dim, channels, freq_shift=1.0)
        self.label_embedding = (
            LabelEmbedding(self.num_classes, self.cond_dim, self.null_class) if self.num_classes else None
        )
        self.encoder, self.middle, self.decoder = build_levels(
            block, channels, widths, self.blocks_per_level, self.attention_levels
        )
        self.downs = nn.ModuleList(ConvDown(w, w) for w in widths[:-1])
        self.ups = nn.ModuleList(ConvUp(w) for w in widths[:0:-1])
        for resampled in (self.stem, self.downs, self.ups):
            fan_average(resampled)
        self.head = ConvHead(norm(widths[0]), self.out_channels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        c = self.time_embedding(noise_label, x.dtype) + cond  # (B, D)
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = Skips(self)
        skips.keep(x)
        for level, blocks in enumerate(self.encoder):
            x = encode(self, blocks, x, c, skips)
            if level < len(self.downs):
                x = run_layer(self, self.downs[level], x)
                skips.keep(x)
        x = run_blocks(self, self.middle, x, c)
        for level, blocks in enumerate(self.decoder):
            x = decode(self, blocks, x, c, skips)
            if level < len(self.ups):
                x = run_layer(self, self.ups[level], x)
        return self.head(x)
