"""ADM's classifier of noisy images, for classifier guidance. Dhariwal & Nichol 2021, arXiv:2105.05233."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.base import Network, Preset, config_from_fields
from dinit.models.layers.adm_blocks import GROUPS, HeadOrder, Resampling
from dinit.models.layers.adm_plan import LEVELS, ADMPlan
from dinit.models.layers.blocks import run_blocks
from dinit.models.layers.embedding import TimeEmbedding

_IMAGENET = {"in_channels": 3, "channels": 128, "blocks_per_level": 2, "head_dim": 64, "num_classes": 1000}
_PRESETS = {name: {"image_size": int(name), **_IMAGENET, **levels} for name, levels in LEVELS.items()}


class AttentionPool(nn.Module):
    """A feature map to one vector: its mean, as a token, attends to itself and every pixel.

    Radford et al. 2021 (CLIP). side: height = width that the table of positions is learned for; maps of
    other sizes get it interpolated. The qkv features are ordered (q | k | v) x head x head_dim.
    """

    def __init__(self, width: int, side: int, num_heads: int, out_features: int) -> None:
        super().__init__()
        self.side, self.num_heads = side, num_heads
        self.positions = nn.Parameter(torch.randn(1 + side**2, width) / width**0.5)  # the mean's, then the pixels'
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width, H, W) -> (B, out_features)."""
        pixels = x.flatten(2).transpose(1, 2)  # (B, H * W, width)
        tokens = torch.cat([pixels.mean(1, keepdim=True), pixels], dim=1) + self._positions(*x.shape[2:])
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # The other tokens' answers would not be read.
        pooled = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # (B, heads, 1, head_dim)
        return self.proj(pooled.flatten(1))

    def _positions(self, height: int, width: int) -> Tensor:
        """The table for a map of this size, (1 + height * width, C)."""
        if height == width == self.side:
            return self.positions
        grid = self.positions[1:].T.unflatten(1, (self.side, self.side))[None]  # (1, C, side, side)
        grid = F.interpolate(grid, size=(height, width), mode="bilinear")
        return torch.cat([self.positions[:1], grid[0].flatten(1).T])


@config_from_fields
class ADMClassifier(Network):
    """Classifier of noisy images: ADM's way down, its middle, and an attention pool.

    Dhariwal & Nichol 2021, arXiv:2105.05233; presets 64, 128, 256, 512. (x, noise label) -> logits.

    Args:
        image_size: height = width that the pool's table is learned for; other multiples of size_multiple work too.
        in_channels: channels of x.
        channels: unit of the widths.
        channel_mult: channels of each level as a multiple of `channels`; all are multiples of 32.
        blocks_per_level: blocks of a level.
        attention_factors: the levels that have attention, by how much smaller than the image they are (2^level).
        head_dim: channels of a head, in the pool as well.
        attention_order: layout of the attention features, see SpatialAttention.
        resampling: between levels, see ADMNetwork.
        scale_shift: the time scales and shifts the norms; otherwise it is added.
        num_classes: classes, at least 1; there is no null class.
        dropout: before the last convolution of a block, in [0, 1).

    Raises:
        ValueError: arguments that do not fit together.
    """

    presets: ClassVar[Mapping[str, Preset]] = {**_PRESETS, "64": {**_PRESETS["64"], "blocks_per_level": 4}}

    image_size: int = 64
    in_channels: int = 3
    channels: int = 128
    channel_mult: Sequence[float] = (1, 2, 3, 4)
    blocks_per_level: int = 2
    attention_factors: Sequence[int] = (2, 4, 8)
    head_dim: int = 64
    attention_order: HeadOrder = "head-first"
    resampling: Resampling = "block"
    scale_shift: bool = True
    num_classes: int = 1000
    dropout: float = 0.0

    def build(self) -> None:
        self.check_positive(num_classes=self.num_classes)
        plan = ADMPlan.of(self, num_heads=1)
        width = plan.widths[-1]
        self.time_embedding = TimeEmbedding(plan.cond_dim, features=self.channels)
        self.encoder, _ = plan.encoder(self.in_channels)
        self.middle = plan.middle()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.pool = AttentionPool(
            width, self.image_size // self.size_multiple, width // self.head_dim, self.num_classes
        )

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,) -> logits (B, num_classes)."""
        self.check_input(x, noise_label)
        c = F.silu(self.time_embedding(noise_label, x.dtype))  # every block starts so
        x = run_blocks(self, self.encoder, x, c)
        x = run_blocks(self, self.middle, x, c)
        return self.pool(F.silu(self.norm(x)))
