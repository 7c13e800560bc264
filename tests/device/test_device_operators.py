"""Every operator on a device that is not the host's: the same numbers, no read-back and no wait."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from held import Place, on_both
from meta import META, meta_device
from operator_rows import LINEAR, NONLINEAR, Options
from torch import Tensor

from dinit.inverse import OPERATORS, LinearOperator, Measurement

CASES = [(name, *row) for rows in (LINEAR, NONLINEAR) for name, entries in rows.items() for row in entries]


def some(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Numbers in [-1, 1]."""
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def run(spec: Options, shape: tuple[int, ...], measured: tuple[int, ...], place: Place) -> list[Tensor]:
    """All that an operator does, with y on the host and on the device."""
    operator = OPERATORS.create(spec)
    x, y, weights = place.put(some(shape)), place.put(some(measured, 1)), place.put(torch.tensor([0.1, 0.0]))
    found = [operator.apply(x), operator.clean(y, shape)]
    for given in (some(measured, 1), y):
        found += [Measurement(operator, some(measured, 1), 0.1).fitted(x).residual(x)] if given is not y else []
    if not isinstance(operator, LinearOperator) or not operator.linear:
        return found
    svd = operator.svd(shape)
    entries, seen = svd.of_image(x), svd.of_measurement(y)
    return [
        *found,
        *(operator.adjoint(y, shape), operator.pseudo_inverse(y, shape)),
        *(operator.solve(y, 0.1, shape), operator.solve(y, 0.0, shape), operator.solve(y, weights, shape)),
        *(entries, seen, svd.to_image(entries, shape), svd.to_measurement(seen, measured)),
        *(svd.pseudo_inverse(seen), svd.values_on(x)),
    ]


@pytest.mark.parametrize(
    ("name", "options", "shape", "measured"), CASES, ids=lambda value: value if isinstance(value, str) else None
)
def test_operator(name: str, options: Options, shape: tuple[int, ...], measured: tuple[int, ...]) -> None:
    spec: dict[str, Any] = {"name": name, **options}
    watch = on_both(lambda place: run(spec, shape, measured, place))
    assert watch.read_backs == []
    assert watch.waits == []
    with meta_device() as watch:
        watch.refuse_waits = True
        operator = OPERATORS.create(spec)
        x = some(shape).to(META, non_blocking=True)
        y = operator.apply(x)
        assert y.is_meta
        assert y.shape == (2, *measured)
        if isinstance(operator, LinearOperator):
            assert operator.pseudo_inverse(y, shape).is_meta
            assert operator.solve(y, 0.1, shape).is_meta
        assert watch.read_backs == []
