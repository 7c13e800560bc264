"""Random projections: fewer numbers than pixels, each of the whole image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.inverse.operators.base import OPERATORS, LinearOperator, Shape
from dinit.inverse.operators.svd import SVD, DenseSVD, TransformSVD, constant


@dataclass(frozen=True)
class _Projection(LinearOperator):
    """Random orthonormal rows.

    Args:
        rows: m, at least 1 and at most C H W.
        seed: Of the choice.
    """

    rows: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows must be at least 1, got {self.rows}")

    def output_shape(self, shape: Shape) -> Shape:
        if self.rows > torch.Size(shape).numel():
            raise ValueError(
                f"{self.rows} orthonormal rows need images of as many numbers; these have "
                f"{torch.Size(shape).numel()}, the shape {tuple(shape)}"
            )
        return (self.rows,)

    def pseudo_inverse(self, y: Tensor, shape: Shape) -> Tensor:
        return self.adjoint(y, shape)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)


@OPERATORS.register("random-projection")
@dataclass(frozen=True)
class RandomProjection(_Projection):
    """Products with random orthonormal rows, the span of Gaussian ones; y is (rows,).

    Args:
        rows: Their number m, at least 1 and at most C H W.
        seed: Of the rows.

    Raises:
        ValueError: rows below 1; from what takes images, more rows than an image has numbers, or a matrix of more
            than 2^26 entries, where hadamard fits.
    """

    def output_shape(self, shape: Shape) -> Shape:
        n = torch.Size(shape).numel()
        if self.rows * n > 2**26:
            raise ValueError(f"a random projection of {self.rows} x {n} numbers is too large: use hadamard")
        return super().output_shape(shape)

    def apply(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        return x.flatten(1) @ self._matrix_on(x, x[0].numel()).T

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        self.check(shape)
        return (y @ self._matrix_on(y, torch.Size(shape).numel())).reshape(-1, *shape)

    def decomposition(self, shape: Shape) -> SVD:
        rows = self._matrix(torch.Size(shape).numel())
        v = torch.linalg.qr(rows.T, mode="complete").Q
        v[:, : self.rows] = rows.T  # the same up to signs
        return DenseSVD(torch.ones(self.rows).double(), torch.eye(self.rows).double(), v)

    def _matrix(self, n: int) -> Tensor:
        columns = torch.randn(n, self.rows, generator=self._generator(), dtype=torch.float64)
        return torch.linalg.qr(columns).Q.T.contiguous()

    def _matrix_on(self, like: Tensor, n: int) -> Tensor:
        return constant(self, ("rows", n), lambda: self._matrix(n), like.device, like.dtype)


@OPERATORS.register("hadamard")
@dataclass(frozen=True)
class Hadamard(_Projection):
    """Some rows of the Walsh-Hadamard transform of the image with random signs; y is (rows,).

    The rows are orthonormal. The transform is of blocks as long as the largest power of two that divides C H W, and
    takes no matrix.

    Args:
        rows: Their number m, at least 1 and at most C H W.
        seed: Of the signs and of the choice of the rows.

    Raises:
        ValueError: rows below 1; from what takes images, more rows than an image has numbers, or an odd number of
            them.
    """

    def output_shape(self, shape: Shape) -> Shape:
        if torch.Size(shape).numel() % 2:
            raise ValueError(f"hadamard needs images of an even count of numbers, got the shape {tuple(shape)}")
        return super().output_shape(shape)

    def apply(self, x: Tensor) -> Tensor:
        self.check(tuple(x.shape[1:]))
        n = x[0].numel()
        chosen = constant(self, ("rows", n), lambda: self.choice(n), x.device)
        return _walsh_hadamard(x.flatten(1) * self._signs(x, n))[:, chosen]

    def adjoint(self, y: Tensor, shape: Shape) -> Tensor:
        self.check(shape)
        n = torch.Size(shape).numel()
        chosen = constant(self, ("rows", n), lambda: self.choice(n), y.device)
        spread = y.new_zeros(len(y), n).index_copy(1, chosen, y)
        return (_walsh_hadamard(spread) * self._signs(y, n)).reshape(-1, *shape)

    def decomposition(self, shape: Shape) -> SVD:
        return _HadamardSVD(self, torch.Size(shape).numel())

    def choice(self, n: int) -> Tensor:
        """The numbers of the rows that are taken, (rows,) in increasing order.

        Args:
            n: Of all rows, C H W.
        """
        return torch.randperm(n, generator=self._generator())[: self.rows].sort().values

    def _signs(self, like: Tensor, n: int) -> Tensor:
        def make() -> Tensor:
            generator = torch.Generator().manual_seed(self.seed + 1)  # not those of the rows
            return torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1

        return constant(self, ("signs", n), make, like.device, like.dtype)

    def transformed(self, x: Tensor, inverse: bool) -> Tensor:
        """All rows.

        Args:
            x: (B, n).
            inverse: Of the transform.

        Returns:
            (B, n).
        """
        signs = self._signs(x, x.shape[1])
        return _walsh_hadamard(x) * signs if inverse else _walsh_hadamard(x * signs)


class _HadamardSVD(TransformSVD):
    def __init__(self, operator: Hadamard, n: int) -> None:
        self.operator = operator
        super().__init__(torch.ones(operator.rows, dtype=torch.float64), operator.choice(n), n)

    def analyse(self, x: Tensor) -> Tensor:
        return self.operator.transformed(x.flatten(1), inverse=False)

    def synthesise(self, coefficients: Tensor) -> Tensor:
        return self.operator.transformed(coefficients, inverse=True)


def _walsh_hadamard(x: Tensor) -> Tensor:
    """The orthonormal, symmetric transform of (B, n), in blocks of the largest power of two that divides n."""
    n = x.shape[1]
    length, half = n & -n, 1
    while half < length:
        pairs = x.reshape(len(x), -1, 2, half)
        x = torch.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], dim=2).reshape(-1, n)
        half *= 2
    return x * length**-0.5
