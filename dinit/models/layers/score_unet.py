"""Layers of the U-Nets of Song et al. 2021: DDPM's, and NCSN++'s with BigGAN's resampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.blocks import run_block
from dinit.models.layers.checks import check_divides
from dinit.models.layers.feature_maps import SpatialAttention
from dinit.models.layers.init import small_normal, zeroed
from dinit.models.layers.linear import conv1x1
from dinit.models.layers.skips import Skips

if TYPE_CHECKING:
    from dinit.models.base import Backbone

Norm = Callable[[int], nn.GroupNorm]

# The published networks for CIFAR-10, but for their blocks.
CIFAR10 = {
    "image_size": 32,
    "in_channels": 3,
    "channels": 128,
    "channel_mult": (1, 2, 2, 2),
    "attention_levels": (1,),
    "num_classes": 0,
}


def group_norm(owner: str, groups: int, channels: int) -> nn.GroupNorm:
    """GroupNorm with the epsilon 1e-6 of both families. ValueError for channels that the groups do not divide."""
    check_divides(owner, "the number of groups", groups, "the channels of every norm", channels)
    return nn.GroupNorm(groups, channels, eps=1e-6)


def fan_average(module: nn.Module) -> nn.Module:
    """Xavier-uniform weights over whole kernels and zero biases in every convolution and Linear. Ho et al. 2020."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


class FourierEmbedding(nn.Module):
    """Noise level sigma -> sin and cos of 2 pi W log(sigma), random fixed W -> Linear, SiLU, Linear.

    Tancik et al. 2020; Song et al. 2021. The frequencies W are saved with the model and not trained.
    """

    def __init__(self, dim: int, features: int, scale: float = 16.0) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(scale * torch.randn(features), requires_grad=False)
        self.mlp = nn.Sequential(
            small_normal(nn.Linear(2 * features, dim)), nn.SiLU(), small_normal(nn.Linear(dim, dim))
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FourierEmbedding:
        exact = self.frequencies.detach()
        super()._apply(fn, recurse)
        if self.frequencies.dtype.itemsize < exact.dtype.itemsize:
            # In half precision they would be other frequencies than those that the MLP was trained with.
            self.frequencies.data = exact.to(self.frequencies.device)
        return self

    def forward(self, sigma: Tensor, dtype: torch.dtype) -> Tensor:
        """sigma (B,) or (1,), positive -> (B, dim) or (1, dim), for activations of the given dtype."""
        label = sigma.to(torch.promote_types(dtype, torch.float32))
        angles = label.log()[:, None] * self.frequencies * (2 * math.pi)
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype))


class ScoreBlock(nn.Module):
    """Norm, SiLU, conv, plus the condition, norm, SiLU, conv; added to the input; then attention with `attend`.

    Ho et al. 2020. resample: changes the resolution of both branches between the first SiLU and the first
    convolution, as in BigGAN (Brock et al. 2019); the input then passes a 1x1 convolution, as it does where the
    width changes. residual_scale: factor on a sum of two branches, 1 or 1/sqrt(2). conv_2 starts at zero.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        cond_dim: int,
        dropout: float,
        *,
        norm: Norm,
        residual_scale: float = 1.0,
        resample: nn.Module | None = None,
        attend: bool = False,
    ) -> None:
        super().__init__()
        self.norm_1 = norm(in_width)
        self.conv_1 = nn.Conv2d(in_width, width, 3, padding=1)
        self.condition = nn.Linear(cond_dim, width)
        self.norm_2 = norm(width)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)
        projected = in_width != width or resample is not None
        self.shortcut = nn.Conv2d(in_width, width, 1) if projected else nn.Identity()
        self.resample = nn.Identity() if resample is None else resample
        self.residual_scale = residual_scale
        fan_average(self)
        zeroed(self.conv_2)
        self.attention = SpatialAttention(norm(width), 1, residual_scale) if attend else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, in_width, H, W), c (B, cond_dim) -> (B, width, H, W), resampled where the block does that."""
        h = self.conv_1(self.resample(F.silu(self.norm_1(x))))
        h = h + self.condition(F.silu(c))[:, :, None, None]
        h = self.conv_2(self.dropout(F.silu(self.norm_2(h))))
        return self.attention((conv1x1(self.shortcut, self.resample(x)) + h) * self.residual_scale)


Levels = nn.ModuleList  # of nn.ModuleList of ScoreBlock


def build_levels(
    block: Callable[[int, int, bool], ScoreBlock],
    stem: int,
    widths: Sequence[int],
    count: int,
    attention_levels: Collection[int],
) -> tuple[Levels, nn.ModuleList, Levels]:
    """Encoder (level by level), middle (two blocks) and decoder (from the bottom up).

    block(in_width, width, attend) makes one. stem, widths: of the stem and of the levels. count: blocks of an
    encoder level; a decoder level has one more, each on the output from below and one skip. Attention follows
    every encoder block of its levels, the first block of the middle, and the last decoder block of its levels.
    """
    encoder, decoder, skips, width = nn.ModuleList(), nn.ModuleList(), [stem], stem
    for level, level_width in enumerate(widths):
        inputs = [width, *[level_width] * (count - 1)]
        encoder.append(nn.ModuleList(block(w, level_width, level in attention_levels) for w in inputs))
        # The last of these is what the change to the next level leaves.
        skips += [level_width] * (count + (level < len(widths) - 1))
        width = level_width
    middle = nn.ModuleList([block(width, width, True), block(width, width, False)])
    for level, level_width in reversed(list(enumerate(widths))):
        blocks = nn.ModuleList()
        for index in range(count + 1):
            attend = index == count and level in attention_levels
            blocks.append(block(width + skips.pop(), level_width, attend))
            width = level_width
        decoder.append(blocks)
    return encoder, middle, decoder


def encode(model: Backbone, blocks: Any, x: Tensor, c: Tensor, skips: Skips) -> Tensor:
    """Run an encoder level's blocks in turn; skips keeps each output."""
    for block in blocks:
        x = run_block(model, block, x, c)
        skips.keep(x)
    return x


def decode(model: Backbone, blocks: Any, x: Tensor, c: Tensor, skips: Skips) -> Tensor:
    """Run a decoder level's blocks in turn, each on the newest of skips as well."""
    for block in blocks:
        x = run_block(model, block, torch.cat(skips.take(x), dim=1), c)
    return x


def check_levels(
    owner: str, channels: int, channel_mult: Sequence[int], attention_levels: Collection[int]
) -> list[int]:
    """Widths of the levels. ValueError for multiples or levels that are out of range."""
    if not channel_mult or min(channel_mult) < 1:
        raise ValueError(f"{owner}: channel_mult must be one or more positive multiples, got {tuple(channel_mult)}")
    if channels % 2 or channels < 4:
        raise ValueError(f"{owner}: channels must be even and at least 4 (of the sinusoid), got {channels}")
    unknown = sorted(set(attention_levels) - set(range(len(channel_mult))))
    if unknown:
        raise ValueError(
            f"{owner}: attention_levels must be among the levels 0 .. {len(channel_mult) - 1} of channel_mult "
            f"(level i is down-scaled by 2^i), got {unknown}"
        )
    return [channels * multiple for multiple in channel_mult]
