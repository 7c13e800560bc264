"""Changes of resolution by pixel shuffling."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ShuffleDown(nn.Module):
    """3x3 convolution to a quarter of the channels, then 2x2 pixels become channels."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, out_width // 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_width, H, W) -> (B, out_width, H/2, W/2)."""
        return F.pixel_unshuffle(self.conv(x), 2)


class ShuffleUp(nn.Module):
    """3x3 convolution to four times the channels, then four channels become 2x2 pixels."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, 4 * out_width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_width, H, W) -> (B, out_width, 2H, 2W)."""
        return F.pixel_shuffle(self.conv(x), 2)
