"""Labels of data sets: from numbers, one-hot rows or class names to 0 .. num_classes - 1."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinit.data.class_names import find_name, is_like_a_number, sorted_names
from dinit.specs import Names

_MOST = 100_000  # classes that are made without num_classes: a larger label is a void label or no label at all
_LARGEST = 10_000_000  # every class has a name in memory
_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
_NO_NAME = re.compile(r"[\[({].*|\d+([\s,;]+\d+)+|[+-]?\d*\.\d+([eE][+-]?\d+)?|[+-]?\d+[eE][+-]?\d+", re.DOTALL)
_SHOWN = 5


def check_labels(labels: NDArray, count: int) -> NDArray[np.int64]:
    """(count,) int64. ValueError for another shape, a dtype that is not integer, or a negative label."""
    if labels.shape != (count,):
        raise ValueError(f"labels must have the shape ({count},), one an image, got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers 0, 1, 2, …, got {labels.dtype}")
    if labels.min() < 0:
        raise ValueError(
            f"labels must be >= 0, got {labels.min()} for {int((labels < 0).sum())} of {count} images; leave "
            "images without a class out, or give them a class of their own"
        )
    if labels.max() > np.iinfo(np.int64).max:
        raise ValueError(f"labels must be integers 0, 1, 2, …, got {labels.max()}")
    return labels.astype(np.int64)


def from_array(labels: NDArray, count: int) -> tuple[NDArray[np.int64] | list[str], int]:
    """Labels of an array in any usual form, and the number of classes that it shows; 0 for words.

    Args:
        labels: (count,) or (count, 1), of whole numbers of any dtype, booleans, or words; or one-hot, (count, K).
        count: number of images.

    Returns:
        (count,) int64, or a list of words; and the largest label + 1, or K of one-hot rows.

    Raises:
        ValueError: another shape or dtype, numbers that are not whole or below 0, or rows that are not one-hot.
    """
    if labels.ndim == 2 and len(labels) == count and labels.shape[1] > 1:
        numbers = labels.dtype.kind in "buif"
        if not numbers or not (np.isin(labels, (0, 1)).all() and (labels.sum(1) == 1).all()):
            raise ValueError(
                f"labels must have the shape ({count},), one an image, or be one-hot rows; got {labels.shape} of "
                f"{labels.dtype}"
            )
        return labels.argmax(1).astype(np.int64), labels.shape[1]
    if labels.ndim <= 2 and labels.size == count and labels.ndim > 0:
        labels = labels.reshape(count)
    if labels.shape == (count,) and labels.dtype.kind in "US":
        try:
            return [one.decode() if isinstance(one, bytes) else str(one) for one in labels.tolist()], 0
        except UnicodeDecodeError as error:
            raise ValueError(f"labels that are words must be UTF-8, got {error.object!r}") from error
    if labels.dtype == np.bool_:
        labels = labels.astype(np.int64)
    if labels.dtype.kind == "f":
        odd = labels[~(np.isfinite(labels) & (labels == np.floor(labels)) & (np.abs(labels) < 2**53))]
        if odd.size:
            raise ValueError(f"labels must be integers 0, 1, 2, …, got {odd.flat[0]:g} of {labels.dtype}")
        labels = labels.astype(np.int64)
    found = check_labels(labels, count)
    return found, int(found.max()) + 1


def label_names(seen: int, num_classes: int | None, class_names: Names | None) -> tuple[str, ...]:
    """Class names, by default the numbers; ValueError where they do not fit. seen: the largest label + 1."""
    names = check_classes(num_classes, class_names)
    total = seen if num_classes is None else num_classes
    total = total if names is None else len(names)
    if seen > total:
        raise ValueError(f"the largest label is {seen - 1}, out of range for {total} classes")
    if num_classes is None and names is None and seen > _MOST:
        raise ValueError(
            f"the largest label is {seen - 1}: images of a label that stands for no class have to be left out; "
            f"num_classes states a number of classes above {_MOST}"
        )
    return tuple(str(i) for i in range(total)) if names is None else names


def check_classes(num_classes: int | None, class_names: Names | None) -> tuple[str, ...] | None:
    """The class names, numbers among them as text; None for None. ValueError where the two options do not fit."""
    if num_classes is not None:
        whole = isinstance(num_classes, int) and not isinstance(num_classes, bool)
        if not whole or not 1 <= num_classes <= _LARGEST:
            raise ValueError(f"num_classes must be a whole number in 1 .. {_LARGEST}, got {num_classes!r}")
    if class_names is None:
        return None
    if isinstance(class_names, str) or not all(isinstance(one, str | int) for one in class_names):
        raise ValueError(f"class_names must be a list of names, got {_short(class_names)}")
    if num_classes is not None and num_classes != len(class_names):
        raise ValueError(f"num_classes is {num_classes}, but there are {len(class_names)} class_names")
    return tuple(str(one) for one in class_names)


def read_names(
    found: Sequence[Any], num_classes: int | None, class_names: Names | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Labels (N,) and class names from values that are all whole numbers or all words. ValueError otherwise."""
    missing = sum(one is None for one in found)
    if missing:
        first = next(place for place, one in enumerate(found) if one is None)
        raise ValueError(
            f"{missing} of {len(found)} images have no label, the first of them image {first}; leave them out or "
            "give them one"
        )
    numbers = [_number(one) for one in found]
    stated = check_classes(num_classes, class_names)
    listed = stated or ()
    if any(map(is_like_a_number, listed)) and all(isinstance(one, str) and one in listed for one in found):
        numbers = [None] * len(found)  # names, although they are numbers
    if None not in numbers:
        try:
            labels = check_labels(np.array(numbers, dtype=np.int64), len(numbers))
        except OverflowError as error:
            raise ValueError(f"labels must be integers 0, 1, 2, …: {error}") from error
        return labels, label_names(int(labels.max()) + 1, num_classes, class_names)
    odd = [one for one, number in zip(found, numbers, strict=True) if number is None]
    wrong = [one for one in odd if not isinstance(one, str)]
    if class_names is None:  # a list such as "[3]" or "3 7", or "1.5", is no name
        wrong += [one for one in odd if isinstance(one, str) and _NO_NAME.fullmatch(one)]
    if wrong or len(odd) < len(found):
        odd = wrong or odd
        raise ValueError(
            f"labels must all be whole numbers, or all names of classes; among them is {_short(odd[0])}"
        )
    names = sorted_names(set(found)) if stated is None else list(stated)
    places = {name: find_name(name, names) for name in set(found)}
    unknown = sorted(name for name, place in places.items() if place is None)
    if unknown or (num_classes is not None and num_classes != len(names)):
        what = f"{unknown[0]!r} is not among the class_names" if unknown else f"num_classes is {num_classes}"
        raise ValueError(f"{what}, and the samples have {len(set(found))} classes; correct it or leave it out")
    return np.array([places[one] for one in found], dtype=np.int64), tuple(names)


def warn_of_empty_classes(
    labels: NDArray[np.int64], class_names: Sequence[str], source: Any, stated: bool, option: bool = True
) -> None:
    """Warning that names the classes without an image, unless their number was stated.

    Args:
        labels: (N,).
        class_names: of all classes.
        source: of the images, for the message.
        stated: whether num_classes was given.
        option: whether the data set has an option num_classes.
    """
    total = len(class_names)
    empty = np.flatnonzero(np.bincount(labels, minlength=total) == 0)
    if stated or not len(empty):
        return
    names = ", ".join(repr(class_names[k]) for k in empty[:_SHOWN]) + (", …" if len(empty) > _SHOWN else "")
    low, high = int(labels.min()), int(labels.max())
    advice = [f"num_classes={total} states that this is meant"] if option else []
    if low == 1 and list(class_names) == [str(k) for k in range(total)]:
        advice.insert(0, "labels that count from 1 have to be stored from 0")
    elif high >= 2 * (total - len(empty)):
        advice.insert(0, f"images of a label that stands for no class (is {high} one?) have to be left out")
    warnings.warn(
        f"{source}: {len(empty)} of {total} classes have no image ({names}; labels are {low} .. {high}), and a "
        f"network learns nothing of them{'; ' if advice else ''}{'; '.join(advice)}",
        stacklevel=3,
    )


def _number(value: Any) -> int | None:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return int(value.split(".")[0]) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"
