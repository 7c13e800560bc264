"""The image itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dinit.inverse.operators.base import OPERATORS, LinearOperator, Shape


@OPERATORS.register("identity")
@dataclass(frozen=True)
class Identity(LinearOperator):
    """The image itself, so that only noise is removed; y has the shape of the image."""

    def output_shape(self, shape: Shape) -> Shape:
        return tuple(shape)

    def apply(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        return y

    def axis_factors(self, shape: Shape) -> tuple[Tensor | None, ...]:
        return (None,) * len(shape)
