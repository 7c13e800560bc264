"""A measurement by a matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.arguments import shown
from dinit.inverse.operators.base import OPERATORS, LinearOperator, Shape
from dinit.inverse.operators.svd import constant


@OPERATORS.register("matrix")
@dataclass(frozen=True, eq=False)
class Matrix(LinearOperator):
    """A given matrix on the flattened image, in the order channel, row, column.

    Args:
        A: (m, C H W).

    Raises:
        ValueError: A is not a matrix of finite numbers.
    """

    A: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or not bool(torch.isfinite(self.A).all()):
            raise ValueError(f"A must be a matrix (m, C H W) of finite numbers, got {shown(self.A)}")

    def output_shape(self, shape: Shape) -> Shape:
        pixels = torch.Size(shape).numel()
        if pixels != self.A.shape[1]:
            raise ValueError(
                f"A has {self.A.shape[1]} columns, for images of as many numbers; these have the shape "
                f"{tuple(shape)}, {pixels} numbers"
            )
        return (self.A.shape[0],)

    def apply(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return x.flatten(1) @ constant(self, "A", lambda: self.A, x.device, x.dtype).T

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        self.check(shape)
        return (y @ constant(self, "A", lambda: self.A, y.device, y.dtype)).reshape(-1, *shape)

    def matrix(self, shape: Shape) -> Tensor:
        self.check(shape)
        return self.A.double().cpu()
