"""ADM's classifier of noisy images, for classifier guidance. Dhariwal & Nichol 2021, arXiv:2105.05233."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from dinit.models.base import register_to_config
from dinit.models.layers.adm_blocks import GROUPS, HeadOrder, Resampling
from dinit.models.layers.adm_plan import ADMPlan
from dinit.models.layers.blocks import run_blocks
from dinit.models.layers.checks import check_input
from dinit.models.layers.embedding import TimeEmbedding
from dinit.registry import suggest

_IMAGENET = {"in_channels": 3, "channels": 128, "blocks_per_level": 2, "head_dim": 64, "num_classes": 1000}
_SIZES: dict[str, dict[str, Any]] = {
    "64": {"channel_mult": (1, 2, 3, 4), "blocks_per_level": 4, "attention_factors": (2, 4, 8)},
    "128": {"channel_mult": (1, 1, 2, 3, 4), "attention_factors": (4, 8, 16)},
    "256": {"channel_mult": (1, 1, 2, 2, 4, 4), "attention_factors": (8, 16, 32)},
    "512": {"channel_mult": (0.5, 1, 1, 2, 2, 4, 4), "attention_factors": (16, 32, 64)},
}


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


class ADMClassifier(ModelMixin, ConfigMixin):
    """The class of a noisy image: the way down of ADM's U-Net, its middle, and an attention pool.

    (x, noise label) -> logits; presets 64, 128, 256, 512. image_size: height = width that the pool's table
    is learned for; other multiples of size_multiple work too. head_dim: channels of a head, in the pool as
    well. The other arguments are ADM's. num_classes: at least 1; no null class.
    ValueError for arguments that do not fit together.
    """

    _supports_gradient_checkpointing: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        name: {"image_size": int(name), **_IMAGENET, **size} for name, size in _SIZES.items()
    }

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 3,
        channels: int = 128,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        blocks_per_level: int = 2,
        attention_factors: Sequence[int] = (2, 4, 8),
        head_dim: int = 64,
        attention_order: HeadOrder = "head-first",
        resampling: Resampling = "block",
        scale_shift: bool = True,
        num_classes: int = 1000,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        multiple = 2 ** max(len(channel_mult) - 1, 0)
        positive = {"in_channels": in_channels, "blocks_per_level": blocks_per_level, "num_classes": num_classes}
        _check_arguments(image_size, multiple, dropout, **positive, channels=channels, head_dim=head_dim)
        self.image_size, self.size_multiple = image_size, multiple
        self.in_channels, self.num_classes = in_channels, num_classes
        # diffusers' enable_gradient_checkpointing() looks for this attribute.
        self.gradient_checkpointing = False  # pyright: ignore[reportArgumentType]
        plan = ADMPlan(
            "ADMClassifier",
            channels=channels,
            channel_mult=channel_mult,
            blocks_per_level=blocks_per_level,
            attention_factors=attention_factors,
            num_heads=1,
            head_dim=head_dim,
            attention_order=attention_order,
            resampling=resampling,
            scale_shift=scale_shift,
            dropout=dropout,
        )
        width = plan.widths[-1]
        self.time_embedding = TimeEmbedding(plan.cond_dim, features=channels)
        self.encoder, _ = plan.encoder(in_channels)
        self.middle = plan.middle()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.pool = AttentionPool(width, image_size // multiple, width // head_dim, num_classes)

    def forward(self, x: Tensor, noise_label: Tensor) -> Tensor:
        """x (B, in_channels, H, W), noise_label (B,) or (1,) -> logits (B, num_classes)."""
        check_input("ADMClassifier", x, self.in_channels, self.size_multiple, noise_label)
        c = F.silu(self.time_embedding(noise_label, x.dtype))  # every block starts so
        x = run_blocks(self, self.encoder, x, c)  # pyright: ignore[reportArgumentType]
        x = run_blocks(self, self.middle, x, c)  # pyright: ignore[reportArgumentType]
        return self.pool(F.silu(self.norm(x)))

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ADMClassifier:
        """The published size `name`. overrides replace single arguments. ValueError for an unknown name."""
        if name not in cls.presets:
            raise ValueError(f"unknown {cls.__name__} preset {name!r}{suggest(name, list(cls.presets))}")
        return cls(**{**cls.presets[name], **overrides})


def _check_arguments(image_size: int, size_multiple: int, dropout: float, **positive: int) -> None:
    """ValueError for an argument out of its range."""
    for argument, value in {**positive, "image_size": image_size}.items():
        if value < 1:
            raise ValueError(f"ADMClassifier: {argument} must be at least 1, got {value}")
    if image_size % size_multiple:
        raise ValueError(f"ADMClassifier: image_size must be a multiple of {size_multiple}, got {image_size}")
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"ADMClassifier: dropout must be in [0, 1), got {dropout}")
