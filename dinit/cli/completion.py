"""Completion of names on the command line, from the same sources as its checks: nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from dinit.cli.names import registry_of

Completion = Callable[[str], list[tuple[str, str]]]


def entries(kind: str) -> Completion:
    """Completes names of a registry, with their summaries; kind: of `dinit.cli.names.PLACES`."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [one for one in registry_of(kind).listed().items() if one[0].startswith(incomplete)]

    return complete


def words(known: Iterable[str]) -> Completion:
    """Completes words of a list."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        return [(word, "") for word in known if word.startswith(incomplete)]

    return complete


def pipelines(incomplete: str) -> list[tuple[str, str]]:
    """Names of shipped pipelines, and folders."""
    from dinit.checkpoints.locating import shipped

    names = [(name, "shipped with dinit") for name in shipped() if name.startswith(incomplete)]
    return names + [(name, "folder") for name in _paths(incomplete) if name.endswith("/")]


def recipes(incomplete: str) -> list[tuple[str, str]]:
    """Names of shipped recipes, YAML files, and the folders on the way to them."""
    from dinit.training.recipe.shipped import shipped_recipes

    names = [(name, text) for name, text in shipped_recipes().items() if name.startswith(incomplete)]
    return names + [(name, "") for name in _paths(incomplete) if name.endswith(("/", ".yaml", ".yml"))]


def datasets(incomplete: str) -> list[tuple[str, str]]:
    """Names of data sets, and folders."""
    folders = [(name, "folder") for name in _paths(incomplete) if name.endswith("/")]
    return entries("datasets")(incomplete) + folders


def _paths(incomplete: str) -> list[str]:
    """Files and folders, these with a / at the end, that begin like this; hidden ones where they are meant."""
    start, _, last = incomplete.rpartition("/")
    start = f"{start}/" if "/" in incomplete else ""
    folder = Path(start or ".").expanduser()
    if not folder.is_dir():
        return []
    hidden = last.startswith(".")
    found = [one for one in folder.iterdir() if one.name.startswith(last) and one.name.startswith(".") == hidden]
    return sorted(f"{start}{one.name}" + "/" * one.is_dir() for one in found)
