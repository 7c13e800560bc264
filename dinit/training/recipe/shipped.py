"""Recipes that come with the package, found by their names."""

from __future__ import annotations

from pathlib import Path

from dinit.files import user_path
from dinit.registry import suggest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"


def shipped_recipes() -> dict[str, str]:
    """What each recipe trains: its name, and the first line of its file."""
    summaries = {}
    for file in sorted(RECIPES.glob("*.yaml")):
        with file.open(encoding="utf-8") as lines:
            summaries[file.stem] = next(lines, "").lstrip("# ").strip()
    return summaries


def recipe_file(name: str | Path) -> Path:
    """The file of a recipe: one at this path, else the shipped recipe of this name.

    ValueError where there is neither.
    """
    path, text = user_path(name), str(name)
    if path.is_file() or (path.exists() and text not in shipped_recipes()):
        return path
    known = list(shipped_recipes())
    if text in known:
        return RECIPES / f"{text}.yaml"
    stem = path.stem if path.suffix in (".yaml", ".yml") else path.name
    raise ValueError(f"there is no recipe file {name}, and no shipped recipe {stem!r}{suggest(stem, known)}")
