"""Measurement: an operator, what it gave, and how noisy that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinit.arguments import check_arguments, shown
from dinit.devices import upload
from dinit.inverse.noise import estimate_noise
from dinit.inverse.operators.base import OPERATORS, LinearOperator, Operator, Shape
from dinit.inverse.operators.mask import Mask


@check_arguments
@dataclass(frozen=True, eq=False)
class Measurement:
    """What is known of images: y = A(x) + noise_std n, with n standard normal.

    Args:
        operator: A: an Operator, a name with or without options, or a mapping.
        y: (B, ...), as the operator gives it, a row for every image; a single row is that of all images.
        noise_std: sigma_y, at least 0, in the units of y.

    Raises:
        ValueError: y that is no batch of finite numbers; a negative noise_std; an unknown operator.
    """

    operator: Operator | str | Mapping[str, Any]
    y: Tensor
    noise_std: float = 0.0

    @classmethod
    def with_estimated_noise(cls, operator: Operator | str | Mapping[str, Any], y: Tensor) -> Measurement:
        """The measurement with the noise that `estimate_noise` finds in y, an image, where the operator measures.

        Args:
            operator: As of the class.
            y: (B, C, H, W).
        """
        made = cls(operator, y)
        # Only a mask has places where it measures nothing, and its measurement has the image's shape.
        seen = made.a.clean(torch.ones_like(y[:1]), tuple(y.shape[1:])) if isinstance(made.a, Mask) else None
        return cls(made.a, y, estimate_noise(y, seen))

    def __post_init__(self) -> None:
        object.__setattr__(self, "operator", OPERATORS.create(self.operator))
        if not isinstance(self.operator, Operator):
            raise ValueError(f"operator must be an Operator, a name or a mapping, got {shown(self.operator)}")
        if not self.y.is_floating_point() or self.y.ndim < 2 or not self.y.shape[0]:
            raise ValueError(
                f"y must be a batch of measurements (B, ...) of a floating-point dtype, got {shown(self.y)}"
            )
        if not self.y.is_meta and not bool(torch.isfinite(self.y).all()):
            raise ValueError("y has values that are not finite")
        if self.noise_std < 0:
            raise ValueError(f"noise_std is a standard deviation, at least 0, got {self.noise_std}")

    @property
    def a(self) -> Operator:
        """The operator A."""
        assert isinstance(self.operator, Operator), "made in __post_init__"
        return self.operator

    def linear(self, who: str) -> LinearOperator:
        """The operator, which has to be linear.

        Args:
            who: Begins the message.

        Raises:
            ValueError: It is not.
        """
        if not isinstance(self.operator, LinearOperator) or not self.operator.linear:
            name = getattr(self.operator, "registry_name", type(self.operator).__name__)
            raise ValueError(f"{who} needs a linear operator, and {name!r} is not: use dps, which needs none")
        return self.operator

    def check(self, shape: Shape, batch: int) -> None:
        """Refusal of images that the measurement does not fit.

        Args:
            shape: Of one image, (C, H, W).
            batch: Their number.

        Raises:
            ValueError: The operator does not act on images of this shape, y is not of the shape that it gives, or
                y has neither one row nor a row for every image.
        """
        expected = self.a.output_shape(tuple(shape))
        if tuple(self.y.shape[1:]) != tuple(expected):
            raise ValueError(
                f"y must have the shape (B, {', '.join(map(str, expected))}), which the operator gives for images "
                f"of shape {tuple(shape)}; got {tuple(self.y.shape)}"
            )
        if batch % len(self.y):
            raise ValueError(f"y has {len(self.y)} rows for {batch} images: give one row, or one for every image")

    def fitted(self, x: Tensor) -> Measurement:
        """The measurement with y in x's dtype, on its device, with x's number of rows, and cleaned by the operator.

        Errors as `check`.

        Args:
            x: (B, C, H, W). Of several times as many images as y has rows, as where conditions are evaluated
                together, every block of that length is of the same images.
        """
        self.check(tuple(x.shape[1:]), len(x))
        y = self.a.clean(upload(self.y, x.device, x.dtype), tuple(x.shape[1:]))
        return self._of(y if len(y) == len(x) else y.repeat(len(x) // len(y), *(1,) * (y.ndim - 1)))

    def rows(self, part: slice) -> Measurement:
        """That of some of the images.

        Args:
            part: Which.
        """
        return self if len(self.y) == 1 else self._of(self.y[part])

    def _of(self, y: Tensor) -> Measurement:
        """The measurement with another y, which is not checked: on a device that would be a read-back."""
        other = object.__new__(Measurement)
        other.__dict__.update(self.__dict__, y=y)
        return other

    def residual(self, x0: Tensor) -> Tensor:
        """y - A(x0), of images (B, C, H, W) that y has the rows of."""
        return self.y - self.a.apply(x0)
