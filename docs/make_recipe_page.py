"""Page of recipe keys: docs/recipe_keys.md, written from the schema of recipes.

`python docs/make_recipe_page.py` writes it. Type, default and range of a key are those that a recipe is checked
with, and its sentence is the one under `Attributes:` in the docstring of its section.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal, Union

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dinit.training.recipe import model
from dinit.training.recipe.model import Named, Positive, Recipe, Section

PAGE = Path(__file__).parent / "recipe_keys.md"
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)
_HEAD = """# Every key of a recipe

All keys with their type, default and range, written by `python docs/make_recipe_page.py` from the schema that
recipes are checked with. On the command line, `dinit train RECIPE training.steps=400` sets a key. A recipe with
an unknown key, a value of another type or one outside its range is refused before anything starts, with the line
and the nearest valid key. [Training](training.md) describes what the less usual keys do, and `dinit train RECIPE
--dry-run` estimates memory and time.

*name* stands for a name of `dinit list`, alone or as a mapping with options: `ddim`, or `{name: ddim, eta: 0.5}`.
A range with `(` or `)` leaves the number itself out. A section that is off by default is on as soon as a recipe
has it, with the defaults below.
"""
# `dinit list` has what a key may name under this word.
LISTS = {
    "data": "datasets",
    "backbone": "backbones",
    "process": "processes",
    "parameterization": "parameterizations",
    "time": "time-samplers",
    "weighting": "weightings",
    "terms": "loss-terms",
    "encoder": "encoders",
    "sampler": "samplers",
    "grid": "grids",
    "guidance": "guidance",
}
_TYPES = {int: "whole number", float: "number", str: "text", bool: "true or false", dict: "mapping"}


def sentences(section: type[BaseModel]) -> dict[str, str]:
    """What the docstring says of each key."""
    text = inspect.cleandoc(section.__doc__ or "").split("Attributes:\n", 1)
    found = _ATTRIBUTE.findall(text[1]) if len(text) == 2 else []
    return {name: " ".join(what.split()) for name, what in found}


def sections(of: type[BaseModel], prefix: str = "") -> list[tuple[str, type[BaseModel]]]:
    """The sections of a recipe with the prefixes of their keys, its own first."""
    found: list[tuple[str, type[BaseModel]]] = [(prefix, of)]
    for name, field in of.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            found += sections(inner, f"{prefix}{name}.")
    return found


def section_of(annotation: Any) -> type[Section] | None:
    """The section that a key opens; None for a value."""
    for one in (annotation, *typing.get_args(annotation)):
        if isinstance(one, type) and issubclass(one, Section):
            return one
    return None


def words(annotation: Any) -> str:
    """A type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return words(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in arguments)
    if origin in (Union, types.UnionType):
        rest = [words(one) for one in arguments if one is not type(None)]
        return " or ".join([*rest, *(["null"] if type(None) in arguments else [])])
    if origin is list:
        return (
            f"{words(arguments[0])}, or a list of them" if arguments[0] is Named else f"list: {words(arguments[0])}"
        )
    if origin is tuple:
        return f"{len(arguments)} {words(arguments[0])}s"
    if origin is dict:
        return f"mapping from {words(arguments[0])} to {words(arguments[1])}"
    if annotation is Named:
        return "*name*"
    return _TYPES[annotation]


def limits(annotation: Any, metadata: typing.Iterable[Any] = ()) -> str:
    """The range of a number, or of each number of a list; '' for none."""
    low, high = "", ""
    for one in metadata:
        for part in one.metadata if isinstance(one, FieldInfo) else (one,):
            if isinstance(part, annotated_types.Gt):
                low = f"({part.gt:g}"
            elif isinstance(part, annotated_types.Ge):
                low = f"[{part.ge:g}"
            elif isinstance(part, annotated_types.Lt):
                high = f"{part.lt:g})"
            elif isinstance(part, annotated_types.Le) and part.le < model._MOST:
                high = f"{part.le:g}]"
    if low == "(0" and annotation in (int, Positive):
        low = "[1"
    if low or high:
        return f"{low or '(−∞'}, {high or '∞)'}"
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        return limits(arguments[0], arguments[1:])
    inner = [limits(one) for one in arguments if not isinstance(one, str)]
    return next((one for one in inner if one), "")


def default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, Named):
        return f"`{value.name}`"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if value in ([], {}):
        return "none"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


def table(section: type[BaseModel], prefix: str) -> str:
    said = sentences(section)
    rows = ["| key | type | default | range | |", "|---|---|---|---|---|"]
    for name, field in section.model_fields.items():
        inner = section_of(field.annotation)
        if inner is not None:
            off = "null" if field.default is None else ""
            cells = f"[`{prefix}{name}`](#{prefix}{name})", "section", off, "", said[name]
        else:
            kind = words(field.annotation).replace("*name*", f"*name* of `dinit list {LISTS.get(name, name)}`")
            limit = limits(field.annotation, field.metadata)
            cells = f"`{prefix}{name}`", kind, default(field), limit, said[name]
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def page() -> str:
    parts = [_HEAD.rstrip()]
    for prefix, section in sections(Recipe):
        key = prefix.rstrip(".")
        parts += [f"## `{key}`" if key else "## The recipe", *([] if not key else [opening(section)])]
        parts.append(table(section, prefix))
    return "\n\n".join(parts) + "\n"


def opening(section: type[BaseModel]) -> str:
    """The docstring's paragraphs before its attributes."""
    return inspect.cleandoc(section.__doc__ or "").split("Attributes:")[0].strip()


def main() -> None:
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name}: {sum(len(section.model_fields) for _, section in sections(Recipe))} keys\n")


if __name__ == "__main__":
    main()
