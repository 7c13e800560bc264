"""Errors about a user's data: with the name of the file or folder that it is from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dinit.contents import unfit


def advise(_: object, name: str) -> str | None:
    """What to write in place of a path that is given for a data set; None for a text that is no path."""
    path = Path(name).expanduser()
    if path.is_dir() and not any(path.iterdir()):
        return f"{name} is an empty folder"
    if path.is_dir():
        return f"for the folder, write folder:path={name},size=SIZE, with the size of the images in pixels"
    if path.is_file():
        return unfit(path, "a data set or a folder of pictures")
    return f"there is no folder {name}" if "/" in name or name.startswith("~") else None


@contextmanager
def named(source: Any) -> Iterator[None]:
    """A ValueError of the block begins with the source, unless it names it already."""
    try:
        yield
    except ValueError as error:
        if str(source) in str(error):
            raise
        raise ValueError(f"{source}: {error}") from error
