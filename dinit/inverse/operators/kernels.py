"""Kernels of blur, and what lies outside of an image's border."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Padding = Literal["circular", "reflected"]


def gaussian_taps(std: float) -> Tensor:
    """A sampled Gaussian of sum 1, cut at 4 standard deviations, (2 r + 1,) float64.

    Args:
        std: In pixels, above 0.
    """
    radius = int(4 * std + 0.5)
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=torch.float64) / std) ** 2)
    return taps / taps.sum()


def motion_kernel(length: float, angle: float) -> Tensor:
    """A line segment of even weight, of sum 1, (2 r + 1, 2 r + 1) float64.

    Args:
        length: Of the path, in pixels, at least 1: a path of 1 leaves the image as it is.
        angle: Of the path in degrees, counter-clockwise from the row.
    """
    reach = (length - 1) / 2
    radius = math.ceil(reach)
    places = torch.linspace(-reach, reach, 16 * radius + 1, dtype=torch.float64)
    turn = math.radians(angle)
    rows, columns = radius - places * math.sin(turn), radius + places * math.cos(turn)
    kernel = torch.zeros(2 * radius + 1, 2 * radius + 1, dtype=torch.float64)
    for down in (0, 1):  # each point is shared between the four pixels around it
        for right in (0, 1):
            row, column = rows.floor() + down, columns.floor() + right
            weight = (1 - (rows - row).abs()) * (1 - (columns - column).abs())
            inside = (row.clamp(0, 2 * radius).long(), column.clamp(0, 2 * radius).long())
            kernel.index_put_(inside, weight, accumulate=True)
    return kernel / kernel.sum()


def folded(index: Tensor, size: int, padding: Padding) -> Tensor:
    """The pixel of an image that stands at a place on or outside of it.

    Args:
        index: Places along one side.
        size: Of that side.
        padding: 'circular' repeats the image; 'reflected' mirrors it about the centre of its border pixels.
    """
    if padding == "circular" or size == 1:
        return index % size
    index = index % (2 * size - 2)
    return torch.minimum(index, 2 * size - 2 - index)


def convolution_matrix(taps: Tensor, size: int, padding: Padding) -> Tensor:
    """The convolution along one side, (size, size): y_i = sum over j of taps_j x_{i - j}.

    Args:
        taps: (2 r + 1,), the middle one of j = 0.
        size: Of the side.
        padding: See `folded`.
    """
    places = torch.arange(size)[:, None]
    shifts = torch.arange(len(taps)) - len(taps) // 2
    matrix = torch.zeros(size, size, dtype=torch.float64)
    columns = folded(places - shifts, size, padding)
    return matrix.index_put_((places.expand_as(columns), columns), taps.expand_as(columns), accumulate=True)


def padding_matrix(radius: int, size: int) -> Tensor:
    """The side of an image with `radius` reflected pixels at both ends, (size + 2 radius, size)."""
    places = folded(torch.arange(-radius, size + radius), size, "reflected")
    return torch.nn.functional.one_hot(places, size).double()


def spectrum(kernel: Tensor, height: int, width: int) -> Tensor:
    """The discrete Fourier transform of a circular convolution, (height, width) complex128.

    Args:
        kernel: (2 r + 1, 2 s + 1), of any size.
        height: Of the image.
        width: Of the image.
    """
    rows = (torch.arange(kernel.shape[0]) - kernel.shape[0] // 2)[:, None] % height
    columns = (torch.arange(kernel.shape[1]) - kernel.shape[1] // 2)[None] % width
    spread = torch.zeros(height, width, dtype=torch.float64)
    spread.index_put_((rows.expand_as(kernel), columns.expand_as(kernel)), kernel, accumulate=True)
    return torch.fft.fft2(spread)
