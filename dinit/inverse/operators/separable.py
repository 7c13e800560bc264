"""Operators that are a product of matrices along the channels, rows and columns of the image."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from dinit.inverse.operators.base import LinearOperator, Shape, image_shape
from dinit.inverse.operators.svd import along, constant


class Separable(LinearOperator):
    """A product of up to three small matrices. Subclasses give them."""

    @abstractmethod
    def along_axis(self, axis: int, size: int) -> Tensor | None:
        """The matrix along one axis, (m, size) float64 on the CPU, or None where nothing is done.

        Args:
            axis: 0 channels, 1 rows, 2 columns.
            size: Of the image along it.

        Raises:
            ValueError: The operator does not fit the size.
        """

    def axis_factors(self, shape: Shape) -> tuple[Tensor | None, ...]:
        kept: dict[Shape, tuple[Tensor | None, ...]] = vars(self).setdefault("_factors", {})
        if shape not in kept:
            with torch.inference_mode(False):
                kept[shape] = tuple(self.along_axis(axis, size) for axis, size in enumerate(shape))
        return kept[shape]

    def output_shape(self, shape: Shape) -> Shape:
        shape = image_shape(self, shape)
        return tuple(
            size if one is None else len(one) for one, size in zip(self.axis_factors(shape), shape, strict=True)
        )

    def apply(self, x: Tensor) -> Tensor:
        return self._product(x, image_shape(self, x.shape[1:]), transposed=False)

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        return self._product(y, image_shape(self, shape), transposed=True)

    def _product(self, x: Tensor, shape: Shape, transposed: bool) -> Tensor:
        for axis, factor in enumerate(self.axis_factors(shape)):
            if factor is not None:
                matrix = constant(self, (axis, shape[axis]), lambda factor=factor: factor, x.device, x.dtype)
                x = along(x, axis + 1, matrix.T if transposed else matrix)
        return x
