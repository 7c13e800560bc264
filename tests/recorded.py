"""Reading golden files: what they hold is in their metadata, and what a file lacks is an error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor


class Named(dict[str, Any]):
    """A mapping that knows the file and the part of it that it was read from."""

    def __init__(self, values: dict[str, Any], part: str) -> None:
        super().__init__(values)
        self.part = part

    def __missing__(self, key: str) -> Any:
        there = ", ".join(sorted(self))[:300] or "none"
        raise ValueError(f"{self.part} have no {key!r}; there are: {there}")


def metadata_of(path: Path) -> Named:
    """The metadata of a file.

    Raises:
        ValueError: The file cannot be read.
    """
    try:
        with safe_open(path, "pt") as file:
            return Named(file.metadata() or {}, f"{path.name}: its metadata")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is damaged, or no safetensors file: {error}") from error


def tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        ValueError: The file cannot be read; from a look-up, no tensor of this key.
    """
    try:
        with safe_open(path, "pt") as file:
            values = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path.name} is damaged, or no safetensors file: {error}") from error
    return Named(values, f"{path.name}: its tensors")


def settings_of(path: Path, metadata: dict[str, Any]) -> Named:
    """The settings (JSON under `kwargs`) of a file.

    Raises:
        ValueError: There are none, or they are no JSON object; from a look-up, no such setting.
    """
    try:
        values = json.loads(metadata["kwargs"])
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name}: its kwargs are no JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name}: its kwargs are no JSON object: {values!r}")
    return Named(values, f"{path.name}: its settings (kwargs)")


def golden_files(folder: Path, kind: Literal["backbones", "samplers"]) -> list[Path]:
    """The files in folder/<kind>; where there is no such folder, those in `folder` that may be of the kind.

    A file of backbones has a `class` in its metadata, one of samplers a `function`. One with neither, or one that
    cannot be read, may be of both.
    """
    if (folder / kind).is_dir():
        return sorted((folder / kind).glob("*.safetensors"))
    other = {"backbones": "function", "samplers": "class"}[kind]
    return [path for path in sorted(folder.glob("*.safetensors")) if other not in _keys(path)]


def _keys(path: Path) -> set[str]:
    try:
        return set(metadata_of(path))
    except ValueError:
        return set()
