"""Fixed tables of a checkpoint, such as positions, compared with dinit's own as exactly as their dtype allows."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

_FLOAT32 = 1e-5  # relative, or absolute below 1: sines and exponentials of another library differ by 1e-7
_DIGITS = 6  # undo the rounding of exp(log(x)) in float32


def check_tables(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    """Compare the tables that a state has with dinit's own.

    Args:
        state: A checkpoint's tensors under their original names.
        own: dinit's tables under the same names; those that the state has not are left out.

    Raises:
        ValueError: a table has other values, by its name.
    """
    for key, table in own.items():
        stored = state.get(key)
        if stored is not None and not equal(stored, table):
            difference = "another size"
            if stored.numel() == table.numel():
                difference = f"a difference of {float(_difference(stored, table).max()):.2g}"
            raise ValueError(
                f"its {key} is not the table of {_size(table)} that the published network has ({difference}), so "
                "these weights were trained with another, which dinit's backbone does not have"
            )


def equal(stored: Tensor, own: Tensor) -> bool:
    """Whether two tables are the same but for the rounding to the precision of the first."""
    if stored.numel() != own.numel():
        return False
    if not own.is_floating_point():
        return bool((stored.reshape(own.shape).double() == own.double()).all())
    size = own.double().abs()
    allowed = _FLOAT32 * size.clamp(min=1) + torch.finfo(precision(stored)).eps * size
    if size.numel() and 0 < float(size.max()) < 1:  # of small numbers, such as betas
        allowed = _FLOAT32 * float(size.max()) + torch.finfo(precision(stored)).eps * size
    return bool((_difference(stored, own) <= allowed).all())


def precision(stored: Tensor) -> torch.dtype:
    """The coarsest dtype that has all of these numbers: float32 ones may have been in half precision before."""
    if not stored.is_floating_point():
        return torch.float32
    for dtype in (torch.bfloat16, torch.float16):
        if stored.dtype == dtype or torch.equal(stored.to(dtype).to(stored.dtype), stored):
            return dtype
    return torch.float32


def decimal(stored: Tensor, dtype: torch.dtype, known: tuple[float, ...] = ()) -> float:
    """The decimal number that was meant by a stored one.

    Args:
        stored: One number.
        dtype: Its precision, see `precision`.
        known: Numbers to prefer, where the stored one is one of them rounded.
    """
    value = float(stored)
    if dtype == torch.float32:
        return float(f"{value:.{_DIGITS}g}")
    candidates = (*known, *(float(f"{value:.{digits}g}") for digits in range(1, _DIGITS + 1)))
    return next((one for one in candidates if float(torch.tensor(one).to(dtype)) == value), value)


def geometric(first: float, last: float, count: int) -> Tensor:
    """`count` numbers that fall or rise geometrically, float64."""
    return torch.linspace(math.log(first), math.log(last), count, dtype=torch.float64).exp()


def _difference(stored: Tensor, own: Tensor) -> Tensor:
    return (stored.reshape(own.shape).double() - own.double()).abs().nan_to_num(nan=math.inf)


def _size(table: Tensor) -> str:
    return f"{len(table)} patches" if table.ndim == 2 else f"{table.numel()} numbers"
