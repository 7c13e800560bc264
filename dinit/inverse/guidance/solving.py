"""Linear systems of posterior guidance, each row of a batch for itself, without a read-back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dinit.inverse.operators.base import LinearOperator, Shape
from dinit.samplers.guidance.base import non_batch_dims


def regularised(
    operator: LinearOperator, residual: Tensor, rho: Tensor | float, shape: Shape, rtol: float = 0.0
) -> Tensor:
    """A* (A A* + rho I)^-1 r, the minimiser d of |r - A d|^2 + rho |d|^2; with rho = 0 the pseudo-inverse.

    Args:
        operator: A.
        residual: r, (B, ...) as the operator gives it.
        rho: At least 0, infinite for d = 0: a number, or (B, 1).
        shape: Of one image, (C, H, W).
        rtol: Singular values up to this share of the largest count as 0.

    Returns:
        d, (B, C, H, W).
    """
    svd = operator.svd(shape)
    known = svd.of_measurement(residual)
    squares = svd.values_on(known) ** 2
    return svd.to_image(svd.pseudo_inverse(known * (squares / (squares + rho)).to(known), rtol), shape)


def noise_to_signal(noise_std: float, variance: Tensor) -> Tensor | float:
    """rho = sigma_y^2 / variance, for `regularised`: infinite where the variance is 0, and 0 where sigma_y is.

    Args:
        noise_std: sigma_y.
        variance: Of the isotropic prior, 0-dimensional or (B, 1, ...).

    Returns:
        A number, or (B, 1) of a batch.
    """
    if noise_std == 0:
        return 0.0
    rho = noise_std**2 / variance
    return rho.reshape(-1, 1) if rho.ndim else rho


def minimal_residual(system: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    """Solution of a linear system by generalised conjugate residuals, for each row, from 0.

    After k iterations the residual is the least in the Krylov space of dimension k, as GMRES has it. A row stays as
    it is once its residual is rounding alone, or the next product is but for rounding in the span of those before.

    Args:
        system: The product of a matrix with (B, ...), one a row, need not be symmetric.
        right: (B, ...).
        iterations: At least 1, each one product.
    """
    x, rest = torch.zeros_like(right), right
    directions: list[tuple[Tensor, Tensor]] = []  # with their images, which are orthonormal
    eps = torch.finfo(right.dtype).eps
    enough = eps**2 * _dot(right, right)
    for _ in range(iterations):
        direction, image = rest, system(rest)
        whole = _dot(image, image)
        for other, its in directions * 2:  # twice, as the first time leaves rounding of the size of `whole`
            share = _dot(its, image)
            direction, image = direction - share * other, image - share * its
        square = _dot(image, image)
        live = (square > eps * whole) & (_dot(rest, rest) > enough)
        length = torch.where(live, square, torch.ones_like(square)).sqrt()
        direction, image = (torch.where(live, v / length, torch.zeros_like(v)) for v in (direction, image))
        share = _dot(image, rest)
        x, rest = x + share * direction, rest - share * image
        directions.append((direction, image))
    return x


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(non_batch_dims(one), keepdim=True)
