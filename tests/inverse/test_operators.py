"""Every operator of the registry: linearity, adjoint, pseudo-inverse, decomposition, dtypes, replay, errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operator_rows import LINEAR, NONLINEAR, Options, some
from torch import Tensor

from dinit.inverse import OPERATORS, DenseSVD, LinearOperator
from dinit.inverse.operators.svd import KroneckerSVD

CASES = [(name, *row) for name, rows in LINEAR.items() for row in rows]
OTHERS = [(name, *row) for name, rows in NONLINEAR.items() for row in rows]


def linear(name: str, options: Options) -> LinearOperator:
    operator = OPERATORS.create({"name": name, **options})
    assert isinstance(operator, LinearOperator)
    assert operator.linear
    return operator


def named(case: Any) -> str | None:
    return f"{case}" if isinstance(case, str) else None


def close(one: Tensor, other: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max().clamp_min(1)))


def test_every_entry_has_a_row() -> None:
    assert sorted(OPERATORS) == sorted([*LINEAR, *NONLINEAR])


@pytest.mark.parametrize(("name", "options", "shape", "measured"), CASES, ids=named)
def test_linear(name: str, options: Options, shape: tuple[int, ...], measured: tuple[int, ...]) -> None:
    operator = linear(name, options)
    x, other, y = some(2, *shape), some(2, *shape, seed=1), some(2, *measured, seed=2)
    ax = operator.apply(x)
    assert ax.shape == (2, *measured) == (2, *operator.output_shape(shape))
    close(operator(x + 3 * other), ax + 3 * operator(other))
    back = operator.adjoint(y, shape)
    assert back.shape == x.shape
    close((ax * y).flatten(1).sum(1), (x * back).flatten(1).sum(1))
    matrix = operator.matrix(shape)
    close(ax.flatten(1), x.flatten(1) @ matrix.T)
    assert operator.size(shape) == int((matrix != 0).any(1).sum())
    close(operator.clean(ax, shape), ax)
    close(operator.adjoint(operator.clean(y, shape), shape), back)


@pytest.mark.parametrize(("name", "options", "shape", "measured"), CASES, ids=named)
def test_decomposition(name: str, options: Options, shape: tuple[int, ...], measured: tuple[int, ...]) -> None:
    operator = linear(name, options)
    svd, matrix = operator.svd(shape), operator.matrix(shape)
    assert svd is operator.svd(list(shape))  # type: ignore[arg-type]
    n, r = matrix.shape[1], len(svd.values)
    dense = torch.linalg.svdvals(matrix)
    close(svd.values, dense[dense > 1e-10 * dense.max()], 1e-10)
    x, y, c = some(3, *shape), some(3, *measured, seed=1), some(3, n, seed=2)
    images, measurements = svd.of_image(x), svd.of_measurement(y)
    assert images.shape == (3, n)
    assert measurements.shape == (3, r)
    close(svd.to_image(images, shape), x, 1e-11)
    close(images.square().sum(1), x.flatten(1).square().sum(1), 1e-11)
    close(svd.of_image(svd.to_image(c, shape)), c, 1e-11)
    seen = svd.to_measurement(c[:, :r], measured)
    close(svd.of_measurement(seen), c[:, :r], 1e-11)
    close((seen * y).flatten(1).sum(1), (c[:, :r] * measurements).sum(1), 1e-11)
    close(operator.apply(x), svd.to_measurement(images[:, :r] * svd.values, measured), 1e-11)
    close(svd.of_measurement(operator.apply(x)), images[:, :r] * svd.values, 1e-11)


@pytest.mark.parametrize(("name", "options", "shape", "measured"), CASES, ids=named)
def test_pseudo_inverse_and_solve(
    name: str, options: Options, shape: tuple[int, ...], measured: tuple[int, ...]
) -> None:
    operator = linear(name, options)
    x, y = some(3, *shape), some(3, *measured, seed=1)
    ax, back = operator.apply(x), operator.pseudo_inverse(y, shape)
    close(operator.apply(operator.pseudo_inverse(ax, shape)), ax, 1e-9)
    close(operator.pseudo_inverse(operator.apply(back), shape), back, 1e-9)
    close(back.flatten(1), y.flatten(1) @ torch.linalg.pinv(operator.matrix(shape), rtol=1e-10).T, 1e-9)
    gram = operator.matrix(shape) @ operator.matrix(shape).T
    one_each = torch.tensor([0.3, 0.1, 2.0], dtype=torch.float64)
    for lam in (0.3, one_each, one_each.reshape(3, 1, 1, 1)):
        solved = operator.solve(y, lam, shape)
        assert solved.shape == y.shape
        by_row = lam.reshape(3, 1) if isinstance(lam, Tensor) else lam
        close(solved.flatten(1) @ gram + by_row * solved.flatten(1), y.flatten(1), 1e-11)
    inverse = torch.linalg.pinv(operator.matrix(shape), rtol=1e-10)
    close(operator.solve(y, 0.0, shape).flatten(1), y.flatten(1) @ inverse.T @ inverse, 1e-8)


@pytest.mark.parametrize(("name", "options", "shape", "measured"), [*CASES, *OTHERS], ids=named)
def test_dtype_and_gradient(name: str, options: Options, shape: tuple[int, ...], measured: tuple[int, ...]) -> None:
    """float32 in, float32 out, and close to float64; made and used in inference mode, then differentiated."""
    operator = OPERATORS.create({"name": name, **options})
    x = some(2, *shape).clamp(-1, 1)
    with torch.inference_mode():
        y = operator.apply(x.float())
        assert y.dtype == torch.float32
        if isinstance(operator, LinearOperator):
            svd = operator.svd(shape)
            assert operator.adjoint(y, shape).dtype == operator.pseudo_inverse(y, shape).dtype == torch.float32
            assert operator.solve(y, 0.1, shape).dtype == svd.of_image(x.float()).dtype == torch.float32
    leaf = x.float().requires_grad_()
    made = operator.apply(leaf)
    close(made.detach().double(), operator.apply(x), 1e-5)
    assert torch.isfinite(torch.autograd.grad(made.square().sum(), leaf)[0]).all()
    if isinstance(operator, LinearOperator):
        measurement = y.clone().requires_grad_()
        back = operator.pseudo_inverse(measurement, shape).sum() + operator.solve(measurement, 0.1, shape).sum()
        assert torch.isfinite(torch.autograd.grad(back, measurement)[0]).all()


def test_svd_is_dense_or_of_factors() -> None:
    """A product along axes decomposes by its factors; values that are 0 in the product alone are dropped."""
    left = DenseSVD.of_matrix(torch.diag(torch.tensor([1.0, 1e-6])).double())
    svd = KroneckerSVD([left, left, 2])
    assert svd.values.tolist() == pytest.approx([1, 1, 1e-6, 1e-6, 1e-6, 1e-6])
    assert svd.pixels == 8
    c = some(1, 6)
    close(svd.of_measurement(svd.to_measurement(c, (2, 2, 2))), c)


def test_matrix_errors() -> None:
    with pytest.raises(ValueError, match="A must be a matrix"):
        OPERATORS.create({"name": "matrix", "A": torch.zeros(3)})
    with pytest.raises(ValueError, match="24 columns"):
        linear("matrix", {"A": some(5, 24)}).svd((1, 5, 5))
