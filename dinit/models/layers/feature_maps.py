"""Layers on feature maps that U-Nets of several families share: self-attention over pixels, and the output head."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from dinit.models.layers.init import zeroed
from dinit.models.layers.transformer import Attention


class SpatialAttention(nn.Module):
    """Self-attention over the pixels of a feature map, added to it. Its projection starts at zero.

    norm: of the channels, before attention. residual_scale: factor on the sum.
    """

    def __init__(self, norm: nn.GroupNorm, num_heads: int, residual_scale: float = 1.0) -> None:
        super().__init__()
        self.norm = norm
        self.attention = Attention(norm.num_channels, num_heads)
        zeroed(self.attention.proj)
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width, H, W) -> the same shape."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H * W, width)
        x = x + self.attention(tokens).transpose(1, 2).unflatten(2, x.shape[2:])
        return x if self.residual_scale == 1 else x * self.residual_scale


class ConvHead(nn.Module):
    """Norm, SiLU and a 3x3 convolution to the output channels; zero at the start."""

    def __init__(self, norm: nn.GroupNorm, out_channels: int) -> None:
        super().__init__()
        self.norm = norm
        self.conv = zeroed(nn.Conv2d(norm.num_channels, out_channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width, H, W) -> (B, out_channels, H, W)."""
        return self.conv(F.silu(self.norm(x)))
