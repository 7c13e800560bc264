"""Recipe YAML, with the line of every key, and dotted overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """Plain values only; 1e-4 is a number, as in YAML 1.2 (PyYAML's 1.1 reads it as text)."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


@dataclass(frozen=True)
class Mistake:
    """One thing that is wrong. path: the key it is about; message: what is wrong and what would be right."""

    path: Path
    message: str

    @property
    def key(self) -> str:
        return ".".join(map(str, self.path))


@dataclass
class Source:
    """A recipe's text, parsed but not checked. places: 'line 4', or the override, of each key."""

    data: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, str] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def place(self, path: Path) -> str:
        """The place of the key, or of the nearest key around or inside it; '' where nothing mentions it."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        inside = (place for key, place in self.places.items() if path and key[: len(path)] == path)
        return next(inside, "")


def read_yaml(text: str, overrides: Sequence[str] = ()) -> Source:
    """Reads YAML text and applies 'a.b=value' overrides, whose values are YAML too. Never raises: see mistakes."""
    source = Source()
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None or not isinstance(node, yaml.MappingNode):
            source.mistakes.append(Mistake((), "a recipe is a mapping of 'key: value' lines, and this is not one"))
        else:
            source.data = _plain(loader, node, (), source)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        source.mistakes.append(Mistake((), f"{where}not valid YAML: {getattr(error, 'problem', error)}"))
    finally:
        loader.dispose()
    for override in overrides:
        _override(source, override)
    return source


def _plain(loader: _Loader, node: yaml.Node, path: Path, source: Source) -> Any:
    if isinstance(node, yaml.SequenceNode):
        values = []
        for i, item in enumerate(node.value):
            source.places[(*path, i)] = f"line {item.start_mark.line + 1}"
            values.append(_plain(loader, item, (*path, i), source))
        return values
    if not isinstance(node, yaml.MappingNode):
        return loader.construct_object(node)
    values = {}
    for key_node, value_node in node.value:
        key = str(getattr(key_node, "value", "?"))
        here = (*path, key)
        if key in values:
            source.mistakes.append(Mistake(here, f"given twice, also at {source.places[here]}; keep one"))
        source.places[here] = f"line {key_node.start_mark.line + 1}"
        values[key] = _plain(loader, value_node, here, source)
    return values


def _override(source: Source, override: str) -> None:
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        source.mistakes.append(
            Mistake((), f"override {override!r}: give it as key=value, for example training.steps=100")
        )
        return
    try:
        value = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        source.mistakes.append(Mistake(path, f"override {override!r}: not valid YAML: {error}"))
        return
    into: dict[str, Any] = source.data
    for part in path[:-1]:
        inner = into.get(part)
        # A bare name is short for the mapping; the override replaces a value that is no mapping.
        into[part] = {"name": inner} if isinstance(inner, str) else inner if isinstance(inner, dict) else {}
        into = into[part]
    into[path[-1]] = value
    for known in [p for p in source.places if p[: len(path)] == path]:
        del source.places[known]
    source.places[path] = f"override {override}"
