"""ADM: the U-Net of "Diffusion Models Beat GANs on Image Synthesis". Dhariwal & Nichol 2021, arXiv:2105.05233."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, Preset, config_from_fields
from dinit.models.layers.adm_blocks import GROUPS, HeadOrder, Resampling
from dinit.models.layers.adm_plan import LEVELS, ADMPlan
from dinit.models.layers.blocks import run_block, run_blocks
from dinit.models.layers.embedding import TimeEmbedding
from dinit.models.layers.feature_maps import ConvHead
from dinit.models.layers.presets import tiny_preset
from dinit.models.layers.skips import Skips

# The published weights know no null class: guidance was by a classifier.
IMAGENET = {
    "in_channels": 3,
    "blocks_per_level": 2,
    "num_classes": 1000,
    "null_class": False,
    "learn_sigma": True,
}
_SIZES: dict[str, Preset] = {
    "64": {"channels": 192, "blocks_per_level": 3, "head_dim": 64, "attention_order": "qkv-first"},
    "128": {"channels": 256, "num_heads": 4, "head_dim": None},
    "256": {"channels": 256, "head_dim": 64},
    "512": {"channels": 256, "head_dim": 64},
}
_PRESETS = {name: {"image_size": int(name), **IMAGENET, **LEVELS[name], **size} for name, size in _SIZES.items()}


@config_from_fields
class ADMNetwork(Backbone):
    """ADM's U-Net with any number of images as its input: the base class of ADM and its super-resolution form.

    Args:
        image_size: height = width it is configured for; others work if they are multiples of size_multiple, which
            is 2^(levels - 1).
        in_channels: channels of x.
        channels: unit of the widths.
        channel_mult: channels of each level as a multiple of `channels`, halving the resolution between levels; all
            are multiples of 32.
        blocks_per_level: on the way down; one more on the way up.
        attention_factors: the levels that have attention, by how much smaller than the image they are (2^level);
            the middle always has.
        num_heads: heads of an attention.
        decoder_heads: heads on the way up; None is num_heads.
        head_dim: channels of a head, which sets both numbers of heads where it is given.
        attention_order: layout of the attention features, see SpatialAttention.
        resampling: between levels by a residual "block", a strided "conv" (up: nearest and conv), or "plain"
            averaging and repeating.
        scale_shift: the condition scales and shifts the norms; otherwise it is added.
        num_classes: classes; 0 is unconditional, and there is no label table then.
        null_class: whether the label table has a row for the null label, which guidance without a classifier needs.
        learn_sigma: in_channels more output channels, for a learned variance.
        dropout: before the last convolution of a block, in [0, 1).

    Raises:
        ValueError: arguments that do not fit together.
    """

    stem_inputs: ClassVar[int] = 1  # images that enter the stem, concatenated

    image_size: int = 64
    in_channels: int = 3
    channels: int = 192
    channel_mult: Sequence[float] = (1, 2, 3, 4)
    blocks_per_level: int = 2
    attention_factors: Sequence[int] = (2, 4, 8)
    num_heads: int = 1
    decoder_heads: int | None = None
    head_dim: int | None = None
    attention_order: HeadOrder = "head-first"
    resampling: Resampling = "block"
    scale_shift: bool = True
    num_classes: int = 1000
    null_class: bool = True
    learn_sigma: bool = False
    dropout: float = 0.0

    def build(self) -> None:
        plan = ADMPlan.of(self, self.num_heads)
        self.cond_dim = plan.cond_dim
        self.time_embedding = TimeEmbedding(plan.cond_dim, features=self.channels)
        self.label_embedding = _label_table(self.num_classes, self.null_class, plan.cond_dim)
        # Entry 0 is the stem: like every other entry it leaves its output for the way up.
        self.encoder, left = plan.encoder(self.stem_inputs * self.in_channels)
        self.middle = plan.middle()
        self.decoder = plan.decoder(left, self.num_heads if self.decoder_heads is None else self.decoder_heads)
        self.head = ConvHead(nn.GroupNorm(GROUPS, plan.widths[0]), self.out_channels)

    def predict(self, inputs: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """inputs (B, stem_inputs * in_channels, H, W), noise_label, cond -> (B, out_channels, H, W)."""
        c = F.silu(self.time_embedding(noise_label, inputs.dtype) + cond)  # (B, D); every block starts so
        x, skips = inputs, Skips(self)
        for entry in self.encoder:
            x = run_block(self, entry, x, c)
            skips.keep(x)
        x = run_blocks(self, self.middle, x, c)
        for block in self.decoder:
            x = run_block(self, block, torch.cat(skips.take(x), dim=1), c)
        return self.head(x)


@BACKBONES.register("adm")
@config_from_fields
class ADM(ADMNetwork):
    """Ablated diffusion model (Dhariwal & Nichol 2021, arXiv:2105.05233); arguments: those of ADMNetwork.

    Presets 64, 128, 256, 512, 256-uncond (LSUN's too). The 64 pixel weights were trained on the cosine schedule,
    the others on the linear one.
    """

    channels_last: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Preset]] = {
        "tiny": tiny_preset(
            channels=32, channel_mult=(1, 1), blocks_per_level=1, attention_factors=(2,), num_heads=2
        ),
        **_PRESETS,
        "256-uncond": {**_PRESETS["256"], "num_classes": 0, "null_class": True},
    }

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        self.check_input(x, noise_label, cond)
        return self.predict(x, noise_label, cond)


def _label_table(num_classes: int, null_class: bool, dim: int) -> nn.Embedding | None:
    """One row a class, and a last one for the null label where there is one; None for no classes."""
    if not num_classes:
        return None
    table = nn.Embedding(num_classes + null_class, dim)
    nn.init.normal_(table.weight, std=0.02)
    return table
