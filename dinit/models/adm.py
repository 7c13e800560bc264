"""ADM: the U-Net of "Diffusion Models Beat GANs on Image Synthesis". Dhariwal & Nichol 2021, arXiv:2105.05233."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import BACKBONES, Backbone, register_to_config
from dinit.models.layers.adm_blocks import ADMHead, HeadOrder, Resampling
from dinit.models.layers.adm_plan import ADMPlan
from dinit.models.layers.blocks import run_block, run_blocks
from dinit.models.layers.checks import check_input, configure
from dinit.models.layers.embedding import TimeEmbedding

# The published weights know no null class: guidance was by a classifier.
_IMAGENET = {
    "in_channels": 3,
    "blocks_per_level": 2,
    "num_classes": 1000,
    "null_class": False,
    "learn_sigma": True,
}
_SIZES: dict[str, dict[str, Any]] = {
    "64": {
        "channels": 192,
        "channel_mult": (1, 2, 3, 4),
        "blocks_per_level": 3,
        "attention_factors": (2, 4, 8),
        "head_dim": 64,
        "attention_order": "qkv-first",
    },
    "128": {
        "channels": 256,
        "channel_mult": (1, 1, 2, 3, 4),
        "attention_factors": (4, 8, 16),
        "num_heads": 4,
        "head_dim": None,
    },
    "256": {
        "channels": 256,
        "channel_mult": (1, 1, 2, 2, 4, 4),
        "attention_factors": (8, 16, 32),
        "head_dim": 64,
    },
    "512": {
        "channels": 256,
        "channel_mult": (0.5, 1, 1, 2, 2, 4, 4),
        "attention_factors": (16, 32, 64),
        "head_dim": 64,
    },
}
_TINY = {
    "image_size": 8,
    "in_channels": 1,
    "channels": 32,
    "channel_mult": (1, 1),
    "blocks_per_level": 1,
    "attention_factors": (2,),
    "num_heads": 2,
    "num_classes": 10,
}


class ADMNetwork(Backbone):
    """What ADM and its super-resolution form share: everything but what enters the stem.

    image_size: height = width it is configured for; others work if they are multiples of size_multiple, which
    is 2^(levels - 1). channels: the unit of the widths; channel_mult: each level's multiple of it, halving
    the resolution between levels; all widths are multiples of 32. blocks_per_level: on the way down; one
    more on the way up. attention_factors: the levels that have attention, by how much smaller than the image
    they are (2^level); the middle always has. num_heads: of an attention; decoder_heads: on the way up, None
    is num_heads; head_dim: channels of a head, which sets both numbers where it is given.
    attention_order: layout of the attention features, see SpatialAttention. resampling: between levels by
    a residual "block", a strided "conv" (up: nearest and conv), or "plain" averaging and repeating.
    scale_shift: the condition scales and shifts the norms; otherwise it is added. dropout: before the last
    convolution of a block. null_class: whether the label table has a row for the null label, which guidance
    without a classifier needs. learn_sigma: in_channels more output channels for a learned variance.
    ValueError for arguments that do not fit together.
    """

    stem_inputs: ClassVar[int] = 1  # images that enter the stem side by side

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 3,
        channels: int = 192,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        blocks_per_level: int = 2,
        attention_factors: Sequence[int] = (2, 4, 8),
        num_heads: int = 1,
        decoder_heads: int | None = None,
        head_dim: int | None = None,
        attention_order: HeadOrder = "head-first",
        resampling: Resampling = "block",
        scale_shift: bool = True,
        num_classes: int = 1000,
        null_class: bool = True,
        learn_sigma: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        configure(
            self,
            image_size=image_size,
            size_multiple=2 ** max(len(channel_mult) - 1, 0),
            in_channels=in_channels,
            num_classes=num_classes,
            learn_sigma=learn_sigma,
            dropout=dropout,
            channels=channels,
            blocks_per_level=blocks_per_level,
        )
        self._set_null_class(null_class)
        plan = ADMPlan(
            type(self).__name__,
            channels=channels,
            channel_mult=channel_mult,
            blocks_per_level=blocks_per_level,
            attention_factors=attention_factors,
            num_heads=num_heads,
            head_dim=head_dim,
            attention_order=attention_order,
            resampling=resampling,
            scale_shift=scale_shift,
            dropout=dropout,
        )
        self.cond_dim = plan.cond_dim
        self.time_embedding = TimeEmbedding(plan.cond_dim, features=channels)
        self.label_embedding = _label_table(num_classes, null_class, plan.cond_dim)
        self._build(plan, num_heads if decoder_heads is None else decoder_heads)

    def _set_null_class(self, null_class: bool) -> None:
        """ValueError for no null class and no other."""
        if not self.num_classes and not null_class:
            raise ValueError(
                f"{type(self).__name__}: null_class must be True with num_classes = 0, "
                "as null is then the only label"
            )
        self.null_class = null_class

    def _build(self, plan: ADMPlan, decoder_heads: int) -> None:
        """The levels and the head."""
        # Entry 0 is the stem: like every other entry it leaves its output for the way up.
        self.encoder, left = plan.encoder(self.stem_inputs * self.in_channels)
        self.middle = plan.middle()
        self.decoder = plan.decoder(left, decoder_heads)
        self.head = ADMHead(plan.widths[0], self.out_channels)

    def embed(self, labels: Tensor) -> Tensor:
        """labels (B,) int64 in 0..num_classes (below it without a null class) -> (B, 4 * channels).

        Zeros where num_classes is 0: the published unconditional network has no table.
        """
        if self.label_embedding is None:
            return torch.zeros(len(labels), self.cond_dim, dtype=self.dtype, device=labels.device)
        return self.label_embedding(labels)

    def predict(self, inputs: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """inputs (B, stem_inputs * in_channels, H, W), noise_label, cond -> (B, out_channels, H, W)."""
        c = F.silu(self.time_embedding(noise_label, inputs.dtype) + cond)  # (B, D); every block starts so
        x, left = inputs, []
        for entry in self.encoder:
            x = run_block(self, entry, x, c)
            left.append(x)
        x = run_blocks(self, self.middle, x, c)
        for block in self.decoder:
            x = run_block(self, block, torch.cat([x, left.pop()], dim=1), c)
        return self.head(x)


@BACKBONES.register("adm")
class ADM(ADMNetwork):
    """Ablated diffusion model (Dhariwal & Nichol 2021); presets 64, 128, 256, 512, 256-uncond (LSUN's too).

    The 64 pixel weights were trained on the cosine schedule, the others on the linear one. Arguments: see
    ADMNetwork.
    """

    channels_last: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "tiny": _TINY,
        **{name: {"image_size": int(name), **_IMAGENET, **size} for name, size in _SIZES.items()},
        "256-uncond": {
            "image_size": 256,
            **_IMAGENET,
            **_SIZES["256"],
            "num_classes": 0,
            "null_class": True,
        },
    }

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,), cond (B, D) -> (B, out_channels, H, W)."""
        check_input("ADM", x, self.in_channels, self.size_multiple, noise_label, cond)
        return self.predict(x, noise_label, cond)


def _label_table(num_classes: int, null_class: bool, dim: int) -> nn.Embedding | None:
    """One row a class, and a last one for the null label where there is one; None for no classes."""
    if not num_classes:
        return None
    table = nn.Embedding(num_classes + null_class, dim)
    nn.init.normal_(table.weight, std=0.02)
    return table
