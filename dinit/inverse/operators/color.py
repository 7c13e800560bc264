"""Measurements of colour: the luma, or some channels of a rotated basis."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.inverse.operators.base import OPERATORS
from dinit.inverse.operators.separable import Separable


@OPERATORS.register("grey")
@dataclass(frozen=True)
class Grey(Separable):
    """The luma of an RGB image, a weighted mean of its channels; y is (1, H, W).

    Args:
        weights: Of red, green and blue. The default is that of ITU-R BT.601, as Pillow has it.

    Raises:
        ValueError: weights that are not three numbers, or all 0; from what takes images, others than of three
            channels.
    """

    weights: tuple[float, ...] = (0.299, 0.587, 0.114)

    def __post_init__(self) -> None:
        if len(self.weights) != 3 or not any(self.weights):
            raise ValueError(f"weights must be three numbers, of red, green and blue, got {self.weights}")

    def along_axis(self, axis: int, size: int) -> Tensor | None:
        if axis:
            return None
        if size != 3:
            raise ValueError(f"grey measures images of 3 channels, red, green and blue; these have {size}")
        return torch.tensor([self.weights], dtype=torch.float64)


@OPERATORS.register("color-rotation")
@dataclass(frozen=True)
class ColorRotation(Separable):
    """Channels of the image in a rotated basis of colours; y is (number of channels, H, W).

    The basis is orthonormal: the first channel is the sum of all over sqrt(C), the luma; the others, the chroma,
    are 0 where the image is grey. Song et al. 2021 (score SDE), Appendix I, colour images by it.

    Args:
        channels: Which of the rotated ones are measured, numbered from 0.

    Raises:
        ValueError: No channels, or one given twice or negative; from what takes images, one that these lack.
    """

    channels: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        if not self.channels or len(set(self.channels)) < len(self.channels) or min(self.channels) < 0:
            raise ValueError(f"channels must be different whole numbers from 0, at least one, got {self.channels}")

    @staticmethod
    def basis(size: int) -> Tensor:
        """The rotation, (size, size) float64: a row for each new channel.

        Args:
            size: The number of channels.
        """
        rows = torch.tril(torch.ones(size, size, dtype=torch.float64)).roll(1, 0)  # Helmert's matrix
        rows[0] = 1
        below = torch.arange(1, size)
        rows[below, below] = -below.double()
        return rows / rows.norm(dim=1, keepdim=True)

    def along_axis(self, axis: int, size: int) -> Tensor | None:
        if axis:
            return None
        if max(self.channels) >= size:
            raise ValueError(
                f"channels {list(self.channels)} of the rotated basis: images of {size} channels have "
                f"0 to {size - 1}"
            )
        return self.basis(size)[list(self.channels)]
