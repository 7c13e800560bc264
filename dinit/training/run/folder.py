"""Run folders: the recipe of a run, and the check whether another recipe may write into its folder."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from dinit.data import ImageData, ImageFolder
from dinit.data.class_names import normalized
from dinit.data.folder import class_folders
from dinit.files import LOCK, is_leftover, write_atomically
from dinit.training.recipe.model import Recipe
from dinit.training.recipe.names import use_present_names

_FREE_OF_LOOP = ("workers", "log_every", "sample_every", "checkpoint_every", "keep", "max_skipped", "sharding")
# Settings that change neither weights nor losses, so a run may be resumed with others.
_FREE = (
    "sampling",
    "evaluation",
    "tracker",
    *(f"training.{key}" for key in _FREE_OF_LOOP),
)

CLASSES = "classes.json"  # names of the run's classes, by number

_ELSEWHERE = "; nothing was written. Give another folder"


class RunFolderError(ValueError):
    """A folder that this recipe must not write into."""


def check_run_folder(out: Path, recipe: Recipe, resume: bool) -> None:
    """RunFolderError unless `out` is absent, empty, or holds a run of this recipe that may be resumed."""
    if not out.exists():
        return
    if not out.is_dir():
        raise RunFolderError(f"{out} is a file; give a folder for the run")
    if all(is_leftover(path) or path.name == LOCK for path in out.iterdir()):
        return
    if not (out / "recipe.yaml").exists():
        raise RunFolderError(f"{out} is not empty and holds no run of dinit{_ELSEWHERE}")
    if not resume:
        raise RunFolderError(f"{out} holds a run already, and resuming was turned off{_ELSEWHERE}")
    changed = differences(read_recipe(out), recipe)
    if changed:
        shown = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changed)
        raise RunFolderError(f"{out} holds a run of another recipe{_ELSEWHERE}, or the same recipe:\n{shown}")


def check_classes(out: Path, data: ImageData) -> None:
    """Whether the data still has the classes that the run in `out` was begun with, by number.

    Args:
        out: The run's folder. Runs of 0.1.0 have no record of their classes, which then were sorted as text.
        data: The data set, as it is now.

    Raises:
        RunFolderError: A class has another number, or another name.
    """
    if (out / CLASSES).is_file():
        try:
            before = list(json.loads((out / CLASSES).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise RunFolderError(f"{out / CLASSES} is damaged: {error}") from error
    elif isinstance(data, ImageFolder):
        before = [normalized(folder.name) for folder in sorted(class_folders(data.root))]
    else:
        return
    now = list(data.class_names)
    if before == now:
        return
    place = next(k for k, (old, new) in enumerate(zip_longest(before, now)) if old != new)
    old, new = (names[place] if place < len(names) else None for names in (before, now))
    raise RunFolderError(
        f"{out} holds a run with other classes than the data set has now: class {place} is {old!r} there, {new!r} "
        "now; nothing was written. Give another folder, or the same data"
    )


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Writes recipe.yaml, every default spelt out."""
    write_atomically(out / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True))


def read_recipe(out: Path) -> Recipe:
    """The recipe with which a run was started. RunFolderError where it cannot be read."""
    try:
        text = (out / "recipe.yaml").read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        if isinstance(data, dict):
            use_present_names(data, warn=False)
        return Recipe.model_validate(data)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = "\n".join(str(error).splitlines()[:12])
        raise RunFolderError(f"{out / 'recipe.yaml'} is not a recipe of this version: {reason}") from error


def differences(old: Recipe, new: Recipe) -> list[tuple[str, Any, Any]]:
    """(dotted key, old, new) of every setting that makes two recipes train differently."""
    before, after = flatten(old.to_dict()), flatten(new.to_dict())
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [
        (key, before.get(key), after.get(key))
        for key in keys
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE)
    ]


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


def scalars(values: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings as trackers take them: flat, of numbers and words."""
    plain = (int, float, str, bool)
    return {key: value if isinstance(value, plain) else str(value) for key, value in flatten(values).items()}
