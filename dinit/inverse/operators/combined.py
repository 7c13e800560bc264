"""Operators made of operators: one after the other, and several of one image."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinit.arguments import shown
from dinit.inverse.operators.base import OPERATORS, LinearOperator, Operator, Shape


@dataclass(frozen=True)
class _Combined(LinearOperator):
    """Of several operators. It is linear if all are."""

    operators: Sequence[Operator | str | Mapping[str, Any]]

    def __post_init__(self) -> None:
        if isinstance(self.operators, str | Mapping) or not self.operators:
            raise ValueError(f"operators must be a list of at least one, got {shown(self.operators)}")
        made = tuple(OPERATORS.create(one) for one in self.operators)
        for one in made:
            if not isinstance(one, Operator):
                raise ValueError(f"operators must be Operators, names or mappings, got {shown(one)}")
        object.__setattr__(self, "operators", made)
        object.__setattr__(self, "linear", all(one.linear for one in made))

    @property
    def parts(self) -> tuple[Operator, ...]:
        """The operators."""
        return tuple(one for one in self.operators if isinstance(one, Operator))

    def linear_parts(self) -> tuple[LinearOperator, ...]:
        """The operators, which are linear.

        Raises:
            ValueError: One is not.
        """
        for one in self.parts:
            if not isinstance(one, LinearOperator) or not one.linear:
                raise ValueError(f"{type(self).__name__} of {type(one).__name__} is not linear and has no adjoint")
        return tuple(one for one in self.parts if isinstance(one, LinearOperator))

    def check(self, shape: Shape) -> None:
        self.output_shape(shape)


@OPERATORS.register("compose")
@dataclass(frozen=True)
class Compose(_Combined):
    """Operators one after the other: each measures what the one before gives; y is as of the last.

    Args:
        operators: The first is applied first. Each an Operator, a name with or without options, or a mapping.

    Raises:
        ValueError: No operators, or an unknown one.
    """

    def apply(self, x: Tensor) -> Tensor:
        for one in self.parts:
            x = one.apply(x)
        return x

    def output_shape(self, shape: Shape) -> Shape:
        return self._shapes(shape)[-1]

    def size(self, shape: Shape) -> int:
        return self.parts[-1].size(self._shapes(shape)[-2])

    def clean(self, y: Tensor, shape: Shape) -> Tensor:
        return self.parts[-1].clean(y, self._shapes(shape)[-2])

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        for one, before in zip(reversed(self.linear_parts()), reversed(self._shapes(shape)[:-1]), strict=True):
            y = one.adjoint(y, before)
        return y

    def axis_factors(self, shape: Shape) -> tuple[Tensor | None, ...] | None:
        product: tuple[Tensor | None, ...] = (None,) * len(shape)
        for one, before in zip(self.linear_parts(), self._shapes(shape), strict=False):
            own = one.axis_factors(before)
            if own is None or len(own) != len(product):
                return None
            product = tuple(map(_times, own, product))
        return product

    def _shapes(self, shape: Shape) -> list[Shape]:
        """Of the image, and of what each operator gives."""
        shapes = [tuple(shape)]
        for one in self.parts:
            shapes.append(one.output_shape(shapes[-1]))
        return shapes


@OPERATORS.register("stack")
@dataclass(frozen=True)
class Stack(_Combined):
    """Several measurements of one image; y is flat, (sum of their lengths,), each in its order.

    Args:
        operators: Each an Operator, a name with or without options, or a mapping.

    Raises:
        ValueError: No operators, or an unknown one.
    """

    def apply(self, x: Tensor) -> Tensor:
        return torch.cat([one.apply(x).flatten(1) for one in self.parts], dim=1)

    def output_shape(self, shape: Shape) -> Shape:
        return (sum(torch.Size(one.output_shape(shape)).numel() for one in self.parts),)

    def size(self, shape: Shape) -> int:
        return sum(one.size(shape) for one in self.parts)

    def clean(self, y: Tensor, shape: Shape) -> Tensor:
        pieces = self.split(y, shape)
        return torch.cat(
            [one.clean(piece, shape).flatten(1) for one, piece in zip(self.parts, pieces, strict=True)], dim=1
        )

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        parts, pieces = self.linear_parts(), self.split(y, shape)
        found = [one.adjoint(piece, shape) for one, piece in zip(parts, pieces, strict=True)]
        return functools.reduce(torch.add, found)

    def split(self, y: Tensor, shape: Shape) -> list[Tensor]:
        """The measurement of each operator, in its own shape.

        Args:
            y: (B, m).
            shape: Of one image, (C, H, W).
        """
        shapes = [one.output_shape(shape) for one in self.parts]
        pieces = y.split([torch.Size(own).numel() for own in shapes], dim=1)
        return [piece.reshape(-1, *own) for piece, own in zip(pieces, shapes, strict=True)]


def _times(last: Tensor | None, first: Tensor | None) -> Tensor | None:
    if last is None or first is None:
        return first if last is None else last
    return last @ first
