"""A measurement by any function, such as an autoencoder's encoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinit.arguments import shown
from dinit.inverse.operators.base import OPERATORS, Operator, Shape


@OPERATORS.register("codec")
@dataclass(frozen=True, eq=False)
class Codec(Operator):
    """A given function of the image, such as `encode` of an autoencoder; y is what it returns.

    With bits, the image is rounded before, as in a file: the measurement of an image by its latent. The derivative
    of the rounding is that of the identity.

    Args:
        function: From (B, C, H, W) to a tensor (B, ...), no row of which depends on another image.
        bits: Of the values of [-1, 1] that the image is rounded to, 1 to 16; None for no rounding.
        output: The shape of the measurement of one image; None finds it by an evaluation of zeros, on the device
            of the function's parameters.

    Raises:
        ValueError: bits out of their range; from what takes images, a function that returns something else.
    """

    function: Callable[[Tensor], Tensor]
    bits: int | None = None
    output: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.bits is not None and not 1 <= self.bits <= 16:
            raise ValueError(f"bits must be 1 to 16, got {self.bits}")

    def output_shape(self, shape: Shape) -> Shape:
        if self.output is not None:
            return tuple(self.output)
        kept: dict[Shape, Shape] = vars(self).setdefault("_shapes", {})
        shape = tuple(shape)
        if shape not in kept:
            owner: Any = getattr(self.function, "__self__", self.function)
            like = next(owner.parameters(), torch.zeros(())) if isinstance(owner, nn.Module) else torch.zeros(())
            with torch.no_grad():
                kept[shape] = tuple(self._called(like.new_zeros(1, *shape)).shape[1:])
        return kept[shape]

    def apply(self, x: Tensor) -> Tensor:
        if self.bits is not None:
            top = 2**self.bits - 1
            rounded = ((x.clamp(-1, 1) + 1) * (top / 2)).round() * (2 / top) - 1
            x = x + (rounded - x).detach()
        return self._called(x)

    def _called(self, x: Tensor) -> Tensor:
        y: object = self.function(x)
        if not isinstance(y, Tensor) or y.ndim < 2 or len(y) != len(x):
            raise ValueError(f"codec's function must return a tensor (B, ...) for (B, C, H, W), got {shown(y)}")
        return y
