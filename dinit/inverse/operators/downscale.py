"""A smaller image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from dinit.inverse.operators.base import OPERATORS
from dinit.inverse.operators.separable import Separable


@OPERATORS.register("downscale")
@dataclass(frozen=True)
class Downscale(Separable):
    """The image in a whole factor fewer pixels along both sides; y is (C, H / factor, W / factor).

    Args:
        factor: At least 1; it divides the height and the width.
        kind: 'area' is the mean of each block of pixels, 'bicubic' resizing with a filter against aliasing, as
            PyTorch and Pillow have it.

    Raises:
        ValueError: factor below 1; from what takes images, a side that factor does not divide.
    """

    factor: int
    kind: Literal["area", "bicubic"] = "area"

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, got {self.factor}")

    def along_axis(self, axis: int, size: int) -> Tensor | None:
        if axis == 0:
            return None
        if size % self.factor:
            raise ValueError(
                f"downscale by {self.factor} needs a height and a width that {self.factor} divides, got {size}"
            )
        small = size // self.factor
        if self.kind == "area":
            return torch.eye(small, dtype=torch.float64).repeat_interleave(self.factor, dim=1) / self.factor
        pixels = torch.eye(size, dtype=torch.float64)[None, None]  # an image whose columns are the unit vectors
        return interpolate(pixels, (small, size), mode="bicubic", antialias=True)[0, 0]
