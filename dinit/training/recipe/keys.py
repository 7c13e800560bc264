"""Keys of a recipe, by its schema."""

from __future__ import annotations

import typing
from typing import Any

from pydantic import BaseModel

from dinit.registry import suggest
from dinit.training.recipe.model import Named, Recipe
from dinit.training.recipe.yaml import Path as KeyPath


def nearest_key(path: KeyPath) -> str:
    """The tail of 'unknown key': the nearest key of the same section, else of any other section."""
    model: type[BaseModel] = Recipe
    for key in path[:-1]:
        section = _section(model.model_fields[str(key)].annotation)
        assert section is not None, "only sections forbid keys"
        model = section
    name, known = str(path[-1]), list(model.model_fields)
    elsewhere = [dotted for dotted in dotted_keys() if dotted.rpartition(".")[2] == name]
    return f"; did you mean {elsewhere[0]!r}?" if elsewhere else suggest(name, known)


def dotted_keys(model: type[BaseModel] = Recipe, prefix: str = "") -> list[str]:
    """Every key of a recipe that an override can set, 'training.steps' and so on."""
    keys = []
    for name, info in model.model_fields.items():
        keys.append(prefix + name)
        inner = _section(info.annotation)
        if inner is not None:
            keys += dotted_keys(inner, f"{prefix}{name}.")
    return keys


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, also where it may be left out; None for other values."""
    kinds = [kind for kind in (annotation, *typing.get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel) and kind is not Named), None)
