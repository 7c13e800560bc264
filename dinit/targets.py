"""Checks, before the work begins, that results can be written. Imports nothing heavy: a refusal is quick."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

ANIMATIONS = ("gif", "webp")


def check_target(path: Path, overwrite: bool, suffixes: Sequence[str] = ()) -> None:
    """Whether a file can be written at `path`, tried before the work begins.

    ValueError for another suffix; FileExistsError unless overwrite; OSError where the folder cannot be written.
    """
    if suffixes and path.suffix.lower().removeprefix(".") not in suffixes:
        raise ValueError(f"{path} must end in {' or '.join('.' + suffix for suffix in suffixes)}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, a file name is needed")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; choose another name, or allow it with --overwrite")
    check_writable(path.parent)


def check_folder_target(folder: Path, overwrite: bool) -> None:
    """As `check_target`, for a folder of PNGs: it is new or empty unless overwrite."""
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, a folder is needed")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise FileExistsError(f"{folder} is not empty; choose another folder, or allow it with --overwrite")
    check_writable(folder)


def check_pipeline_target(folder: Path, overwrite: bool) -> None:
    """As `check_folder_target`, for a pipeline, which replaces a whole folder: only another pipeline gives way."""
    check_folder_target(folder, overwrite)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "model_index.json").is_file():
        raise FileExistsError(f"{folder} holds other files than a pipeline, these are not replaced; choose another")


def check_writable(folder: Path) -> None:
    """OSError where nothing can be written to a folder, or to the nearest one above it that exists.

    Args:
        folder: made by what writes to it.
    """
    nearest = next(parent for parent in (folder, *folder.resolve().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise OSError(f"{folder} cannot be written: {error.strerror or error}") from error
