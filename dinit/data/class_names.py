"""Names of classes: their order, and the class that a text means."""

from __future__ import annotations

import operator
import unicodedata
from collections.abc import Iterable, Sequence

from dinit.registry import suggest


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


def class_number(label: int | str | None, num_classes: int, class_names: Sequence[str] | None) -> int | None:
    """The class that a label means; None, the null class, where it is None.

    Args:
        label: A number or a name. A text that is no name is read as a number where it can be nothing else.
        num_classes: Number of classes; 0 for an unconditional pipeline.
        class_names: By number; None where the classes have no names.

    Raises:
        ValueError: An unknown name, or one of several classes; a number out of range; another object.
    """
    if label is None:
        return None
    if num_classes == 0:
        raise ValueError(f"this pipeline is unconditional, it takes no label {label!r}; give num_images instead")
    if isinstance(label, str):
        label = _class_of_text(label, class_names or ())
    if isinstance(label, bool) or not hasattr(label, "__index__"):
        raise ValueError(f"a label must be a whole number, got {label!r}")
    number = operator.index(label)
    if not 0 <= number < num_classes:
        null = "; no class, the null class, is None" if number == num_classes else ""
        raise ValueError(f"class {number} is out of range: this pipeline has classes 0 .. {num_classes - 1}{null}")
    return number


def _class_of_text(text: str, class_names: Sequence[str]) -> int:
    """The class that a text means: a name, or, where it can be nothing else, a number."""
    named = find_name(text, class_names)
    if named is not None:
        return named
    if text.isascii() and text.isdecimal() and len(text) < 10:
        if not class_names:
            return int(text)
        if not any(map(is_like_a_number, class_names)) and text == str(int(text)):
            return int(text)
    if not class_names:
        raise ValueError(f"unknown class {text!r}: this pipeline has no class names, give numbers")
    raise ValueError(f"unknown class {text!r}{_near(text, class_names)}")


def _near(name: str, class_names: Sequence[str]) -> str:
    """The end of the message for an unknown class: the nearest name, and all of them where they are few."""
    if len(class_names) <= 20:
        return suggest(name, list(class_names))
    return suggest(name, list(class_names)).split(" (known", 1)[0] + f" ({len(class_names)} classes)"
