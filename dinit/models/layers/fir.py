"""Resampling by two, with the binomial filter that NCSN++ takes from StyleGAN2 (FIR), or with plain averages.

Zhang 2019 (Making Convolutional Networks Shift-Invariant Again) is why to filter. As depthwise convolutions they
need no extension, keep channels-last, and run at any size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = (1.0, 3.0, 3.0, 1.0)


class _Filter(nn.Module):
    """Holds the kernel, (1, 1, 4, 4): the outer product of TAPS with itself, of sum `gain`. Not in the weights."""

    kernel: Tensor

    def __init__(self, gain: float) -> None:
        super().__init__()
        taps = torch.tensor(TAPS)
        kernel = torch.outer(taps, taps) * (gain / taps.sum() ** 2)
        self.register_buffer("kernel", kernel[None, None], persistent=False)

    def weight(self, x: Tensor) -> Tensor:
        """The kernel once a channel, in x's dtype: multiples of 1/64, which every floating dtype holds exactly."""
        return self.kernel.to(x.dtype).expand(x.shape[1], 1, -1, -1)


class FIRDown(_Filter):
    """Filter and keep every second pixel; zeros outside the image."""

    def __init__(self) -> None:
        super().__init__(gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, H/2, W/2)."""
        return F.conv2d(x, self.weight(x), stride=2, padding=1, groups=x.shape[1])


class FIRUp(_Filter):
    """Zeros between the pixels, then the filter with four times the gain, so that a constant stays one."""

    def __init__(self) -> None:
        super().__init__(gain=4.0)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, 2H, 2W)."""
        return F.conv_transpose2d(x, self.weight(x), stride=2, padding=1, groups=x.shape[1])


class FIRConvDown(_Filter):
    """The filter, then a 3x3 convolution of stride 2."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__(gain=1.0)
        self.conv = nn.Conv2d(in_width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_width, H, W) -> (B, width, H/2, W/2)."""
        return self.conv(F.conv2d(x, self.weight(x), padding=2, groups=x.shape[1]))  # H + 1 after the filter


class ConvDown(nn.Module):
    """A 3x3 convolution of stride 2, padded on the right and at the bottom only. Ho et al. 2020."""

    def __init__(self, in_width: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, in_width, H, W) -> (B, width, H/2, W/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class ConvUp(nn.Module):
    """Every pixel four times, then a 3x3 convolution. Ho et al. 2020."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, width, H, W) -> (B, width, 2H, 2W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def downsampler(fir: bool) -> nn.Module:
    """Halves both sides, channel by channel: FIR, or the mean of 2x2 pixels."""
    return FIRDown() if fir else nn.AvgPool2d(2)


def upsampler(fir: bool) -> nn.Module:
    """Doubles both sides, channel by channel: FIR, or every pixel four times."""
    return FIRUp() if fir else nn.Upsample(scale_factor=2, mode="nearest")
