"""Options that cannot act: refused, as whoever set one expects other images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


class IdleOption(ValueError):
    """Options that do nothing with the others as they are.

    Attributes:
        names: Of the options.
    """

    names: tuple[str, ...] = ()


def refuse_idle(owner: Any, names: Sequence[str], why: str, remedy: str) -> None:
    """Refuse options that were set and cannot act.

    Args:
        owner: A frozen dataclass: a sampler or a grid.
        names: Of its options that cannot act.
        why: Completes "..., which does nothing ".
        remedy: What makes them act.

    Raises:
        IdleOption: One of the options is not at its default.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(owner)}
    given = [name for name in names if getattr(owner, name) != defaults[name]]
    if given:
        values = ", ".join(f"{name} = {getattr(owner, name)!r}" for name in given)
        error = IdleOption(
            f"{type(owner).__name__} has {values}, which does nothing {why}: {remedy}, or leave it out"
        )
        error.names = tuple(given)
        raise error
