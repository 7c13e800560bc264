"""An image that is too bright for its range."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dinit.inverse.operators.base import OPERATORS, Operator, Shape


@OPERATORS.register("saturate")
@dataclass(frozen=True)
class Saturate(Operator):
    """The image times a gain, clipped; y has the shape of the image. It has no derivative where it is clipped.

    Zhang et al. 2024 (DAPS) restore images of high dynamic range from it, with a gain of 2.

    Args:
        gain: Not 0.
        low: The least value that is kept.
        high: The largest value that is kept, above low.

    Raises:
        ValueError: A gain of 0, or a high that is not above low.
    """

    gain: float = 2.0
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.gain == 0:
            raise ValueError("gain must not be 0: nothing would be measured")
        if not self.low < self.high:
            raise ValueError(f"high must be above low, got {self.high} and {self.low}")

    def output_shape(self, shape: Shape) -> Shape:
        return tuple(shape)

    def apply(self, x: Tensor) -> Tensor:
        return (self.gain * x).clamp(self.low, self.high)
