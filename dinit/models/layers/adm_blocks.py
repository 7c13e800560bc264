"""Layers of ADM's U-Net, its upsampler and its classifier. Dhariwal & Nichol 2021, arXiv:2105.05233."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.init import zeroed
from dinit.models.layers.linear import conv1x1
from dinit.models.layers.modulation import modulate

GROUPS = 32  # of every group norm, at every width
Resampling = Literal["block", "conv", "plain"]
HeadOrder = Literal["head-first", "qkv-first"]
RESAMPLINGS, HEAD_ORDERS = ("block", "conv", "plain"), ("head-first", "qkv-first")


class Keep(nn.Module):
    """Identity in place of a resampling layer."""

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W) -> x. c is not used."""
        return x


class Halve(nn.Module):
    """Half the resolution: a 3x3 convolution of stride 2 (with_conv), or the mean of 2x2 pixels."""

    def __init__(self, width: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1) if with_conv else None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, width, H, W) -> (B, width, H/2, W/2). c is not used."""
        return F.avg_pool2d(x, 2) if self.conv is None else self.conv(x)


class Double(nn.Module):
    """Twice the resolution: every pixel repeated, then (with_conv) a 3x3 convolution."""

    def __init__(self, width: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, width, H, W) -> (B, width, 2H, 2W). c is not used."""
        x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class ResBlock(nn.Module):
    """Norm, SiLU, conv, condition, norm, SiLU, conv; added to the input.

    scale_shift: the condition scales and shifts the second norm's output (adaptive group norm); otherwise it
    is added before that norm. resample: a Halve or Double without weights, which acts on both branches, on
    the inner one between SiLU and the first convolution. conv_2 starts at zero.
    """

    def __init__(
        self,
        in_width: int,
        width: int,
        cond_dim: int,
        scale_shift: bool,
        dropout: float,
        resample: Halve | Double | None = None,
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm_1 = nn.GroupNorm(GROUPS, in_width)
        self.resample = Keep() if resample is None else resample
        self.conv_1 = nn.Conv2d(in_width, width, 3, padding=1)
        self.condition = nn.Linear(cond_dim, 2 * width if scale_shift else width)
        self.norm_2 = nn.GroupNorm(GROUPS, width)
        self.dropout = nn.Dropout(dropout)
        self.conv_2 = zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.shortcut = nn.Identity() if in_width == width else nn.Conv2d(in_width, width, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, in_width, H, W), c (B, cond_dim), SiLU applied -> (B, width, H', W')."""
        h = self.conv_1(self.resample(F.silu(self.norm_1(x)), c))
        condition = self.condition(c)[:, :, None, None]
        if self.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            h = modulate(self.norm_2(h), shift, scale)
        else:
            h = self.norm_2(h + condition)
        return conv1x1(self.shortcut, self.resample(x, c)) + self.conv_2(self.dropout(F.silu(h)))


class SpatialAttention(nn.Module):
    """Self-attention over the pixels of a feature map, added to it. Its projection starts at zero.

    order: how the 3 * width features of qkv are laid out. "head-first": head x (q | k | v) x head_dim, as in
    the published models from 128 pixels on. "qkv-first": (q | k | v) x head x head_dim, as in the 64 pixel one.
    """

    def __init__(self, width: int, num_heads: int, order: HeadOrder) -> None:
        super().__init__()
        self.num_heads, self.order = num_heads, order
        self.norm = nn.GroupNorm(GROUPS, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width, H, W) -> the same shape."""
        features = self.qkv(self.norm(x).flatten(2).transpose(1, 2))  # (B, H * W, 3 * width)
        if self.order == "head-first":
            parts = features.unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        else:
            parts = features.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = parts  # (B, heads, H * W, head_dim) each
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.proj(mixed).transpose(1, 2).unflatten(2, x.shape[2:])


class ADMStem(nn.Module):
    """The first convolution."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, in_channels, H, W) -> (B, width, H, W), channels-last. c is not used."""
        return self.conv(x.contiguous(memory_format=torch.channels_last))


class ADMBlock(nn.Module):
    """A ResBlock, then attention and a doubling of the resolution where there are any."""

    def __init__(
        self,
        res: ResBlock,
        attention: SpatialAttention | None = None,
        up: ResBlock | Double | None = None,
    ) -> None:
        super().__init__()
        self.res = res
        self.attention = nn.Identity() if attention is None else attention
        self.up = Keep() if up is None else up

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, in_width, H, W), c (B, cond_dim), SiLU applied -> (B, width, H', W')."""
        return self.up(self.attention(self.res(x, c)), c)
