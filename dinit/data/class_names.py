"""Names of classes: their order, and the class that a text means."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence


def normalized(name: str) -> str:
    """The composed form (NFC) of a name, as keyboards give it; folders of macOS have the decomposed one (NFD)."""
    return unicodedata.normalize("NFC", name)


def sorted_names(names: Iterable[str]) -> list[str]:
    """Class names in the order of their numbers: by value where all are whole numbers, otherwise as text."""
    listed = list(names)
    if all(name.isascii() and name.isdecimal() for name in listed):
        return sorted(listed, key=lambda name: (int(name), len(name)))
    return sorted(listed, key=lambda name: (normalized(name), name))


def find_name(text: str, names: Sequence[str]) -> int | None:
    """The number of the class that is called `text`, whichever of both forms of Unicode it is written in.

    Args:
        text: A name.
        names: All names, by number.

    Returns:
        The number; None where no class has the name.

    Raises:
        ValueError: Several classes have it.
    """
    places = [place for place, name in enumerate(names) if name == text]
    if not places:
        places = [place for place, name in enumerate(names) if normalized(name) == normalized(text)]
    if len(places) > 1:
        numbers = ", ".join(map(str, places[:8]))
        raise ValueError(f"{text!r} is the name of {len(places)} classes, numbers {numbers}; give the number")
    return places[0] if places else None


def is_like_a_number(name: str) -> bool:
    """Whether a name is a number or made of numbers, as '001', '-1', '1.5', '0-9' and '60+' are."""
    return any(one.isnumeric() for one in name) and not any(one.isalpha() for one in name)
