"""Operators: what a measurement y = A(x) + sigma_y n does to an image. The contract and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from dinit.inverse.operators.svd import SVD, KroneckerSVD
from dinit.registry import Registry

OPERATORS: Registry[type[Operator]] = Registry("operator", "dinit.inverse.operators")

Shape = tuple[int, ...]
"""Of one image, (C, H, W), or of one measurement: without the batch."""


class Operator(ABC):
    """A measurement without its noise, A. Subclasses are frozen dataclasses; random ones are fixed by a seed.

    It acts on images of any shape that `check` accepts, in their dtype and on their device, and is differentiable
    by autograd.

    Attributes:
        linear: Whether it is linear, and has an adjoint and a pseudo-inverse: a `LinearOperator`.
    """

    linear: bool = False
    registry_name: ClassVar[str]

    @abstractmethod
    def apply(self, x: Tensor) -> Tensor:
        """A(x).

        Args:
            x: (B, C, H, W).

        Returns:
            (B, ...), the measurement without noise.
        """

    def __call__(self, x: Tensor) -> Tensor:
        """A(x), as `apply`."""
        return self.apply(x)

    @abstractmethod
    def output_shape(self, shape: Shape) -> Shape:
        """The shape of the measurement of one image.

        Args:
            shape: Of the image, (C, H, W).

        Raises:
            ValueError: The operator does not fit images of this shape.
        """

    def check(self, shape: Shape) -> None:
        """ValueError where the operator does not fit images of this shape, (C, H, W)."""
        self.output_shape(shape)

    def size(self, shape: Shape) -> int:
        """How many numbers of one image are measured: of `output_shape`, those that are not always 0.

        Args:
            shape: Of the image, (C, H, W).
        """
        return torch.Size(self.output_shape(shape)).numel()

    def clean(self, y: Tensor, shape: Shape) -> Tensor:
        """The measurement with 0 where the operator measures nothing, such as in the hole of a mask.

        Args:
            y: (B, ...), of the form that `apply` gives.
            shape: Of one image, (C, H, W).
        """
        return y


class LinearOperator(Operator):
    """A linear measurement. What a subclass does not give in a quick form follows from its dense matrix."""

    linear: bool = True

    @abstractmethod
    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        """A* y, so that <A x, y> = <x, A* y>.

        Args:
            y: (B, ...), of the form that `apply` gives.
            shape: Of one image, (C, H, W).

        Returns:
            (B, C, H, W).
        """

    def pseudo_inverse(self, y: Tensor, shape: Shape) -> Tensor:
        """A+ y, the least image of all whose measurement is nearest to y. Arguments and result as `adjoint`."""
        svd = self.svd(shape)
        return svd.to_image(svd.pseudo_inverse(svd.of_measurement(y)), shape)

    def solve(self, r: Tensor, lam: float | Tensor, shape: Shape) -> Tensor:
        """The solution v of (A A* + lam I) v = r, exact by the SVD.

        Args:
            r: (B, ...), of the form that `apply` gives.
            lam: At least 0: a number, or one a sample, (B,) or (B, 1, ...). Where it is 0, v is the least solution
                of the smallest residual.
            shape: Of one image, (C, H, W).

        Returns:
            (B, ...), as r.
        """
        svd = self.svd(shape)
        lam = lam.reshape(-1, 1) if isinstance(lam, Tensor) else r.new_full((1, 1), lam)
        seen = svd.of_measurement(r)
        solved = svd.to_measurement(seen / (svd.values_on(r) ** 2 + lam), r.shape[1:])
        if len(svd.values) == r[0].numel():
            return solved
        rest = (r - svd.to_measurement(seen, r.shape[1:])).flatten(1)
        positive = lam > 0
        rest = torch.where(
            positive, rest / torch.where(positive, lam, torch.ones_like(lam)), torch.zeros_like(rest)
        )
        return solved + rest.reshape_as(r)

    def svd(self, shape: Shape) -> SVD:
        """The singular value decomposition A = U S V^T, computed once for each shape.

        Args:
            shape: Of one image, (C, H, W).

        Raises:
            ValueError: The operator does not fit the shape, or the dense matrix would be too large to decompose.
        """
        shape = tuple(shape)
        kept: dict[Shape, SVD] = vars(self).setdefault("_decompositions", {})
        if shape not in kept:
            self.check(shape)
            with torch.inference_mode(False), torch.no_grad():
                kept[shape] = self.decomposition(shape)
        return kept[shape]

    def decomposition(self, shape: Shape) -> SVD:
        """What `svd` keeps. By default it is that of the factors, or else of the dense matrix.

        Args:
            shape: Of one image that the operator fits, (C, H, W).
        """
        factors = self.axis_factors(shape)
        if factors is None:
            return SVD.of_matrix(self.matrix(shape))
        pairs = zip(factors, shape, strict=True)
        return KroneckerSVD([size if one is None else SVD.of_matrix(one) for one, size in pairs])

    def axis_factors(self, shape: Shape) -> tuple[Tensor | None, ...] | None:
        """The matrices along the axes of the image that A is the product of, if it is one.

        Args:
            shape: Of one image that the operator fits, (C, H, W).

        Returns:
            One (m, size) float64 on the CPU for each axis, None for nothing along it; or None for no product.
        """
        return None

    def matrix(self, shape: Shape) -> Tensor:
        """The dense matrix of A on flattened images, (m, C H W) float64 on the CPU.

        Args:
            shape: Of one image, (C, H, W).

        Raises:
            ValueError: The operator does not fit the shape, or the matrix would have more than 2^26 entries.
        """
        m, n = (int(torch.Size(one).numel()) for one in (self.output_shape(shape), shape))
        if m * n > 2**26:
            raise ValueError(
                f"{type(self).__name__} has no quick decomposition for images of shape {tuple(shape)}, and its "
                f"dense matrix would have {m} x {n} entries: use a method that needs the adjoint alone, such as "
                "mmps or dps"
            )
        with torch.inference_mode(False), torch.no_grad():
            images = torch.eye(n, dtype=torch.float64).reshape(n, *shape)
            return self.apply(images).reshape(n, m).T.contiguous()


def image_shape(operator: Operator, shape: Shape) -> Shape:
    """The shape as a tuple (C, H, W).

    Args:
        operator: Acts on images of this shape.
        shape: Of one image.

    Raises:
        ValueError: It has not three entries.
    """
    if len(shape) != 3:
        raise ValueError(f"{operator.registry_name} measures images (C, H, W), got the shape {tuple(shape)}")
    return tuple(shape)
