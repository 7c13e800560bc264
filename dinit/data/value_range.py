"""Value ranges of image arrays: which numbers are black and white, by what is stated or by the whole set."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Range = tuple[float, float]

BYTES: Range = (0.0, 255.0)
NETWORK: Range = (-1.0, 1.0)
_PIECE = 4096  # images that are looked at together: the array may be larger than memory
_DARK = 31  # bytes: a whole set without a brighter pixel is probably in another range
_STATE = "value_range='LOW..HIGH' states another range"


def parse_range(stated: str | Sequence[float] | None) -> Range | None:
    """(low, high) of "0..1", or of two numbers; None for None. ValueError for anything else."""
    if stated is None:
        return None
    parts: Any = re.split(r"\.\.+|,", stated) if isinstance(stated, str) else stated
    try:
        low, high = (float(part) for part in parts)
    except (TypeError, ValueError):
        low = high = math.nan
    if not low < high or not math.isfinite(high - low):
        raise ValueError(f"value_range must be 'LOW..HIGH', black and white, such as '0..1'; got {stated!r}")
    return low, high


def range_of(images: NDArray, stated: Range | None, source: Any) -> Range:
    """Values of black and white.

    As stated; or by dtype, bytes 0 .. 255 and floats -1 .. 1, unless the whole set shows another range: then that
    one, with a warning. A warning too where the set is oddly dark, bright or pale for its range.

    Args:
        images: (N, …), any dtype.
        stated: the range, or None.
        source: of the images, for messages.

    Raises:
        ValueError: a dtype that is no number, NaN or infinity, values outside the range, or integers other than
            bytes whose range is not stated.
    """
    if images.dtype == np.bool_:
        images = images.view(np.uint8)
        stated = stated or (0.0, 1.0)
    if images.dtype.kind not in "uif":
        raise ValueError(f"images must be uint8 in 0 .. 255 or float in [-1, 1], got {images.dtype} in {source}")
    enough = _DARK if images.dtype == np.uint8 and stated is None else None
    low, high = _extremes(images, source, enough)
    if stated is not None:
        if low < stated[0] or high > stated[1]:
            outside = f"value_range is {stated[0]:g} .. {stated[1]:g}, but the values of {source}"
            raise ValueError(f"{outside} are from {low:g} to {high:g}")
        return stated
    if images.dtype == np.uint8:
        return _of_bytes(high, source)
    if images.dtype.kind in "ui":
        raise ValueError(
            f"images must be uint8 in 0 .. 255 or float in [-1, 1], got {images.dtype} with values from {low:g} to "
            f"{high:g} in {source}; value_range='LOW..HIGH' states their range, such as '0..255' or '0..65535'"
        )
    if low < -1 or high > 1:
        raise ValueError(
            f"float images must be within [-1, 1], got values from {low:g} to {high:g} in {source}; rescale them, "
            "save bytes (0 .. 255) as uint8, or state their range, such as value_range='0..255'"
        )
    return _of_floats(low, high, source)


def to_network(pixels: NDArray, values: Range) -> NDArray[np.float32]:
    """Pixels of a range to [-1, 1], float32."""
    low, high = values
    if max(abs(low), abs(high)) > 1 << 16:  # float32 has 24 bits
        return ((pixels.astype(np.float64) - low) * (2 / (high - low)) - 1).astype(np.float32)
    return pixels.astype(np.float32) / np.float32((high - low) / 2) - np.float32((high + low) / (high - low))


def warn_of_dark_bytes(images: NDArray, source: Any) -> None:
    """Warning where uint8 images (N, …), which stand for 0 .. 255, are all but black throughout the set."""
    high = _extremes(images, source, _DARK)[1]
    if 0 < high <= _DARK:
        warnings.warn(
            f"{source}: the largest value of all images is {high:g}, and 0 .. 255 is black to white: almost black. "
            "Save them as 0 .. 255 if that is not meant",
            stacklevel=2,
        )


def _of_bytes(high: float, source: Any) -> Range:
    if high == 1:
        _warn(source, "its uint8 images have only the values 0 and 1, so these are taken as black and white")
        return 0.0, 1.0
    if 1 < high <= _DARK:
        _warn(source, f"the largest value of all its uint8 images is {high:g}: almost black, in 0 .. 255")
    return BYTES


def _of_floats(low: float, high: float, source: Any) -> Range:
    between = f"its float images have values from {low:g} to {high:g}"
    if low >= 0 and high > low:
        _warn(source, f"{between}, none below 0, so 0 .. 1 is taken as black to white")
        return 0.0, 1.0
    if -0.5 <= low < -0.49 and 0.49 < high <= 0.5:
        _warn(source, f"{between}, so -0.5 .. 0.5 is taken as black to white")
        return -0.5, 0.5
    if low > -0.5 or high < 0.5:
        _warn(source, f"{between}, and -1 .. 1 is taken as black to white")
    return NETWORK


def _warn(source: Any, text: str) -> None:
    warnings.warn(f"{source}: {text}; {_STATE}", stacklevel=4)


def _extremes(images: NDArray, source: Any, enough: float | None) -> Range:
    """Smallest and largest value; the search ends at a value above `enough`. ValueError for NaN and infinity."""
    low, high = math.inf, -math.inf
    for start in range(0, len(images), _PIECE):
        piece = images[start : start + _PIECE]
        if images.dtype.kind == "f":
            finite = np.isfinite(piece)
            if not finite.all():
                image = start + int(np.argwhere(~finite)[0, 0])
                raise ValueError(
                    f"float images must be within [-1, 1], got NaN or infinity in image {image} of {source}; "
                    "leave such images out"
                )
        low, high = min(low, float(piece.min())), max(high, float(piece.max()))
        if enough is not None and high > enough:
            break
    return low, high
