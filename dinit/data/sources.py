"""Errors about a user's data: with the name of the file or folder that it is from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def named(source: Any) -> Iterator[None]:
    """A ValueError of the block begins with the source, unless it names it already."""
    try:
        yield
    except ValueError as error:
        if str(source) in str(error):
            raise
        raise ValueError(f"{source}: {error}") from error
