"""Operators: what a measurement y = A(x) + sigma_y n does to an image. The contract and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

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

    linear: ClassVar[bool] = False
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


class LinearOperator(Operator):
    """A linear measurement. What a subclass does not give in a quick form follows from its dense matrix."""

    linear: ClassVar[bool] = True

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

    def svd(self, shape: Shape) -> SVD:
        """The singular value decomposition A = U S V^T, on the CPU in float64.

        Args:
            shape: Of one image, (C, H, W).

        Raises:
            ValueError: The operator does not fit the shape, or the dense matrix would be too large to decompose.
        """
        return SVD.of_matrix(self.matrix(shape))

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
        return self.apply(torch.eye(n, dtype=torch.float64).reshape(n, *shape)).reshape(n, m).T.contiguous()


@dataclass(frozen=True, eq=False)
class SVD:
    """A = U S V^T with dense orthogonal factors. Operators with quick transforms override its methods.

    Attributes:
        values: Singular values in decreasing order, (r,), r = rank of A.
        u: (m, r).
        v: (n, n); its first r columns belong to `values`, the rest span the null space.
    """

    values: Tensor
    u: Tensor
    v: Tensor

    @classmethod
    def of_matrix(cls, matrix: Tensor) -> SVD:
        """The decomposition of an (m, n) matrix; singular values below 1e-10 of the largest count as 0."""
        u, values, vh = torch.linalg.svd(matrix.double().cpu(), full_matrices=True)
        rank = int((values > 1e-10 * values.max()).sum())
        return cls(values[:rank], u[:, :rank], vh.T.contiguous())

    def of_image(self, x: Tensor) -> Tensor:
        """V^T x: coefficients of a batch of images, (B, n)."""
        return x.flatten(1) @ self.v.to(x)

    def to_image(self, coefficients: Tensor, shape: Shape) -> Tensor:
        """V c: images (B, C, H, W) of coefficients (B, n)."""
        return (coefficients @ self.v.T.to(coefficients)).reshape(-1, *shape)

    def of_measurement(self, y: Tensor) -> Tensor:
        """U^T y: coefficients of a batch of measurements, (B, r)."""
        return y.flatten(1) @ self.u.to(y)

    def pseudo_inverse(self, coefficients: Tensor) -> Tensor:
        """S+ c: from coefficients of measurements (B, r) to those of images (B, n), 0 in the null space."""
        known = coefficients / self.values.to(coefficients)
        return torch.nn.functional.pad(known, (0, self.v.shape[1] - known.shape[1]))
