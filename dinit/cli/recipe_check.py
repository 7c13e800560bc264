"""Checks of a recipe before torch is imported: YAML, keys and types, names and options of registries, folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dinit.cli.checks import check_entry, check_pipeline
from dinit.cli.names import registry_of
from dinit.contents import unfit
from dinit.files import user_path

_KINDS = {  # key of a recipe -> registry of its entry
    ("data",): "datasets",
    ("backbone",): "backbones",
    ("process",): "processes",
    ("parameterization",): "parameterizations",
    ("loss", "weighting"): "weightings",
    ("loss", "terms"): "loss-terms",
    ("time",): "time-samplers",
    ("sampling", "sampler"): "samplers",
    ("sampling", "grid"): "grids",
    ("sampling", "guidance"): "guidance",
    ("evaluation", "data"): "datasets",
}


def check_recipe(path: Path | None, overrides: Sequence[str]) -> None:
    """What shows without torch of a recipe's mistakes; loading it reports the others.

    Args:
        path: the file; None is a recipe for fine-tuning, of which only the overrides are given.
        overrides: 'a.b=value'.

    Raises:
        ValueError: the file is of another kind; or the mistakes, each with its line.
    """
    from dinit.training.recipe.file import RecipeError, read_text, schema_mistakes
    from dinit.training.recipe.yaml import Mistake, read_yaml

    text = "finetune: {}\ndata: digits\ntraining: {steps: 1}" if path is None else read_text(path)
    source = read_yaml(text, overrides)
    mistakes = schema_mistakes(source)
    wrong = {mistake.path for mistake in mistakes}
    for key, kind, entry in _entries(source.data):
        if not any(key == one[: len(key)] for one in wrong):
            mistakes += [Mistake((*key, *place), message) for place, message in _entry_mistakes(kind, entry)]
    finetune = source.data.get("finetune")
    if isinstance(finetune, dict) and isinstance(finetune.get("init_from"), str):
        try:
            check_pipeline(finetune["init_from"])
        except (OSError, ValueError) as error:
            mistakes.append(Mistake(("finetune", "init_from"), str(error)))
    if path is None:
        mistakes = [one for one in mistakes if one.path != ("finetune", "init_from")]
    if mistakes:
        raise RecipeError("the recipe" if path is None else path.name, source, mistakes)


def check_data(text: str, init_from: str | None) -> dict[str, Any]:
    """The data set that --data means, of which a folder's size is not known yet.

    Args:
        text: a folder, or a name with options.
        init_from: the pipeline that training starts from, which has the size of a folder's pictures.

    Returns:
        Name and options.

    Raises:
        ValueError: an unknown name or option, a file, an empty folder, or a folder without a size.
    """
    path = user_path(text)
    if not path.is_dir():
        if path.is_file():
            raise ValueError(unfit(path, "a folder of pictures or a data set such as glyphs:size=32"))
        check_entry("datasets", text)
        return registry_of("datasets").parse(text)
    if not any(path.iterdir()):
        raise ValueError(f"the folder {text} is empty; wanted: one sub-folder of pictures for each class")
    if init_from is None:
        raise ValueError(f"the size of the images is not known; give it, as in --data folder:path={text},size=32")
    return {"name": "folder", "path": text, "size": 8}


def _entries(data: dict[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str, dict[str, Any]]]:
    """Key, kind and options of every entry of a registry in a recipe."""
    for keys, kind in _KINDS.items():
        value: Any = data
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        for place, one in enumerate(value) if isinstance(value, list) else (((), value),):
            entry = {"name": one} if isinstance(one, str) else one
            if isinstance(entry, dict) and isinstance(entry.get("name"), str):
                yield (*keys, *((place,) if isinstance(place, int) else ())), kind, entry


def _entry_mistakes(kind: str, entry: dict[str, Any]) -> list[tuple[tuple[str, ...], str]]:
    """The key inside an entry, and the message; none where nothing is wrong."""
    options = {key: value for key, value in entry.items() if (kind, key) != ("backbones", "preset")}
    folder = options.get("path") if kind == "datasets" and options["name"] == "folder" else None
    if isinstance(folder, str) and not user_path(folder).is_dir():
        return [(("path",), f"there is no folder {folder}; wanted: one sub-folder of pictures for each class")]
    try:
        check_entry(kind, options)
    except LookupError as error:
        return [(("name",), str(error))]
    except ValueError as error:
        named = [word for word in re.findall(r"\w+", str(error)) if word in options and word != "name"]
        return [(tuple(named[:1]), str(error))]
    return []
