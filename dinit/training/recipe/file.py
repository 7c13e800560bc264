"""Recipe files: reading and validation. All mistakes are reported together, each with its line and nearest name."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dinit.arguments import shown
from dinit.contents import unfit
from dinit.training.recipe.following import follow_overrides
from dinit.training.recipe.keys import nearest_key
from dinit.training.recipe.model import Recipe
from dinit.training.recipe.shipped import recipe_file
from dinit.training.recipe.yaml import Mistake, Source, read_yaml
from dinit.training.recipe.yaml import Path as KeyPath

# Put in for what a recipe leaves out, so that the rest of it can still be checked. Never trained on.
_PLACEHOLDERS: dict[str, Any] = {
    "data": {"name": "digits"},
    "backbone": {"name": "unet"},
    "training": {"steps": 1},
}


_SHOWN, _LONGEST = 15, 800  # mistakes, and characters of one, that an error spells out


class RecipeError(ValueError):
    """A recipe that cannot be trained. `mistakes` holds all; str() is the report, a line for each, up to 15.

    Args:
        title: What was read: the file's name.
        source: The text's keys and their lines.
        mistakes: At least one.
    """

    def __init__(self, title: str, source: Source, mistakes: Sequence[Mistake]) -> None:
        mistakes = sorted(mistakes, key=lambda mistake: _line(source.place(mistake.path)))
        self.mistakes = mistakes
        count = "1 mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
        lines = [f"{title} has {count}:"]
        for mistake in mistakes[:_SHOWN]:
            parts = [source.place(mistake.path), mistake.key, mistake.message]
            lines.append("  " + _cut(": ".join(_cut(part, _LONGEST // 2) for part in parts if part), _LONGEST))
        if len(mistakes) > _SHOWN:
            lines.append(f"  and {len(mistakes) - _SHOWN} more")
        super().__init__("\n".join(lines))


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from a YAML file.

    Args:
        path: The file, or the name of a shipped recipe, see `dinit.list_recipes`. A file of that name comes first.
        overrides: Dotted keys with values in YAML, such as 'training.steps=100'; they replace the file's values.

    Returns:
        The validated recipe.

    Raises:
        RecipeError: the recipe has mistakes; the error lists them all.
        ValueError: there is no such recipe, or the file cannot be read.
    """
    if not isinstance(path, str | Path):
        raise ValueError(f"a recipe is the path of a file, or a shipped recipe's name; got {shown(path)}")
    path = recipe_file(path)
    return parse_recipe(read_text(path), overrides, title=path.name)


def read_text(path: Path) -> str:
    """The text of a recipe's file.

    Args:
        path: The file.

    Raises:
        ValueError: there is no such file, it is of another kind, or it cannot be read.
    """
    if not path.is_file():
        raise ValueError(unfit(path, "a recipe (.yaml)"))
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"recipe {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        if path.suffix.lower() not in (".yaml", ".yml"):
            raise ValueError(unfit(path, "a recipe (.yaml)")) from error
        raise ValueError(
            f"recipe {path} is no text in UTF-8, from byte {error.start} on; save it as UTF-8"
        ) from error
    if "\0" in text and path.suffix.lower() not in (".yaml", ".yml"):
        raise ValueError(unfit(path, "a recipe (.yaml)"))
    return text


def parse_recipe(text: str, overrides: Sequence[str] = (), title: str = "the recipe") -> Recipe:
    """Read a recipe from YAML text.

    Where an override of training.steps or training.batch_size leaves schedule.warmup_steps or
    training.gradient_accumulation impossible, these follow it, with a warning that names both.

    Args:
        text: The YAML.
        overrides: Dotted keys with values in YAML, such as 'training.steps=100'; they replace the text's values.
        title: What errors call the recipe.

    Returns:
        The validated recipe.

    Raises:
        RecipeError: the recipe has mistakes; the error lists them all.
    """
    # Here: all but these is read without torch, by commands too.
    from dinit.training.finetune.transfer import inherit
    from dinit.training.recipe.checks import check_recipe
    from dinit.training.recipe.names import use_present_names

    source = read_yaml(text, overrides)
    if source.mistakes and not source.data:
        raise RecipeError(title, source, source.mistakes)
    recipe, data = None, copy.deepcopy(source.data)
    odd = inherit(data)
    use_present_names(data)
    mistakes, given = [*source.mistakes, *odd], set(data)
    if any(mistake.path[0] == "finetune" for mistake in odd):  # no pipeline to take the backbone from
        data = {"backbone": _PLACEHOLDERS["backbone"], **data}
    try:
        recipe = _validate(data)
    except ValidationError as error:
        mistakes += [_mistake(details) for details in error.errors()]
        recipe = _repaired(data, error)
    lines: list[str] = []
    if recipe is not None:
        recipe, lines = follow_overrides(recipe, source)
        # A mistake in a placeholder only means that the key is missing, which is reported already.
        absent = _PLACEHOLDERS.keys() - given
        mistakes += [m for m in check_recipe(recipe) if not (m.path and m.path[0] in absent)]
    if mistakes:
        raise RecipeError(title, source, mistakes)
    assert recipe is not None, "no mistakes were found, so the recipe was built"
    for line in lines:
        warnings.warn(line, stacklevel=2)
    return recipe


def _validate(data: dict[str, Any]) -> Recipe:
    # Through JSON: strict there refuses "5" for 5 and yet takes a list for a tuple.
    return Recipe.model_validate_json(json.dumps(data, default=str), strict=True)


def schema_mistakes(source: Source) -> list[Mistake]:
    """What YAML and the types of a recipe's keys show, without its data set, its network and the registries.

    Args:
        source: Of `read_yaml`.

    Returns:
        The mistakes; none of a missing key where fine-tuning takes it from a pipeline.
    """
    mistakes = list(source.mistakes)
    if mistakes and not source.data:
        return mistakes
    taken = isinstance(source.data.get("finetune"), dict)
    try:
        _validate(source.data)
    except ValidationError as error:
        mistakes += [_mistake(one) for one in error.errors() if not (taken and one["type"] == "missing")]
    return mistakes


def _repaired(data: dict[str, Any], error: ValidationError) -> Recipe | None:
    """The recipe with the wrong keys left to their defaults, for the checks that remain; None if hopeless."""
    for details in error.errors():
        _drop(data, details["loc"])
    for key, placeholder in _PLACEHOLDERS.items():
        if isinstance(placeholder, dict) and isinstance(data.get(key), dict):
            data[key] = {**placeholder, **data[key]}
        elif not isinstance(data.get(key), str):
            data[key] = placeholder
    try:
        return _validate(data)
    except ValidationError:
        return None


def _drop(data: Any, path: KeyPath) -> None:
    for key in path[:-1]:
        try:
            data = data[key]
        except (KeyError, IndexError, TypeError):
            return
    if not path:
        return
    if isinstance(data, dict):
        data.pop(path[-1], None)
    elif isinstance(data, list) and isinstance(path[-1], int) and path[-1] < len(data):
        data[path[-1]] = None


def _mistake(details: Any) -> Mistake:
    path = details["loc"]
    if details["type"] == "extra_forbidden":
        return Mistake(path, f"unknown key{nearest_key(path)}")
    if details["type"] == "missing":
        return Mistake(path, "required, and not given")
    message = details["msg"][0].lower() + details["msg"][1:]
    if details["type"] in ("model_type", "model_attributes_type", "dict_type"):
        message = "should be a mapping of 'key: value' lines, or a name where a registry entry is meant"
    if details["type"] == "string_pattern_mismatch":
        message = "should be a name without / and \\ that does not begin with a point"
    if details["type"] == "string_type" and isinstance(details["input"], bool | int | float):
        message += " (in quotes it is one)"
    return Mistake(path, f"{message}, got {_short(details['input'])}")


def _short(value: Any) -> str:
    return _cut(repr(value), 60)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _line(place: str) -> tuple[int, str]:
    return (int(place.removeprefix("line ")), "") if place.startswith("line ") else (1 << 30, place)
