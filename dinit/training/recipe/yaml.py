"""Recipe YAML, with the line of every key, and dotted overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]


_MOST_VALUES = 20_000  # of a text, aliases counted as often as they are used
_MOST_DEPTH = 50


class _Loader(yaml.SafeLoader):
    """Plain values only, numbers as in YAML 1.2: 1e-4 is one, and 010, 1:30 and dates are texts (1.1: 8, 90)."""


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in _NUMBERS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_FLOAT = r"[-+]?(\d[\d_]*\.[\d_]*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
for _tag, _pattern in (("int", r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)"), ("float", _FLOAT)):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^({_pattern})$"), list("-+.0123456789"))


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
    try:
        read = _Reader(text, source)
        if not isinstance(read.node, yaml.MappingNode):
            source.mistakes.append(Mistake((), "a recipe is a mapping of 'key: value' lines, and this is not one"))
        else:
            source.data = read.value(read.node, ())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        source.data, source.places = {}, {}
        source.mistakes = [Mistake((), f"not valid YAML: {_reason(error)}")]
        mark = getattr(error, "problem_mark", None)
        if mark:
            source.mistakes = [Mistake((), f"line {mark.line + 1}: {source.mistakes[0].message}")]
    for override in overrides:
        _override(source, override)
    return source


class _Reader:
    """Plain values of a YAML text, and the lines of its keys.

    Raises:
        yaml.YAMLError: the text is not YAML.
        ValueError: it is nested or repeated beyond any recipe.
        RecursionError: likewise.
    """

    def __init__(self, text: str, source: Source) -> None:
        self.source, self.count = source, 0
        self.loader = _Loader(text)
        try:
            self.node = self.loader.get_single_node()
        finally:
            self.loader.dispose()

    def value(self, node: yaml.Node, path: Path) -> Any:
        self.count += 1
        if self.count > _MOST_VALUES or len(path) > _MOST_DEPTH:
            raise ValueError(f"more than {_MOST_VALUES} values, or more than {_MOST_DEPTH} inside each other")
        if isinstance(node, yaml.SequenceNode):
            values = []
            for i, item in enumerate(node.value):
                self.source.places[(*path, i)] = f"line {item.start_mark.line + 1}"
                values.append(self.value(item, (*path, i)))
            return values
        if not isinstance(node, yaml.MappingNode):
            return self._plain(node, path)
        found = {}
        for key_node, value_node in node.value:
            is_word = isinstance(key_node, yaml.ScalarNode)
            key = str(key_node.value) if is_word else f"a {key_node.id} as a key"
            here = (*path, key)
            if key in found:
                self._mistake(here, f"given twice, also at {self.source.places[here]}; keep one")
            self.source.places[here] = f"line {key_node.start_mark.line + 1}"
            found[key] = self.value(value_node, here)
        return found

    def _plain(self, node: yaml.Node, path: Path) -> Any:
        try:
            value = self.loader.construct_object(node)
            if isinstance(value, str):
                value.encode()  # a lone surrogate has no UTF-8
        except ValueError as error:
            self._mistake(path, f"cannot be read: {_reason(error)}")
            return None
        return value

    def _mistake(self, path: Path, message: str) -> None:
        self.source.mistakes.append(Mistake(path, message))


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(getattr(error, "problem", None) or getattr(error, "reason", None) or error).split("\n")[0]


def _override(source: Source, override: str) -> None:
    key, equals, text = override.partition("=")
    path = tuple(key.strip().split("."))
    if not equals or not all(path):
        source.mistakes.append(
            Mistake((), f"override {override!r}: give it as key=value, for example training.steps=100")
        )
        return
    part = Source()
    try:
        read = _Reader(text, part)
        value = None if read.node is None else read.value(read.node, ())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        source.mistakes.append(Mistake(path, f"override {override!r}: not valid YAML: {_reason(error)}"))
        return
    for one in part.mistakes:
        source.mistakes.append(Mistake((*path, *one.path), f"override {override!r}: {one.message}"))
    into: dict[str, Any] = source.data
    for name in path[:-1]:
        inner = into.get(name)
        # A bare name is short for the mapping; the override replaces a value that is no mapping.
        into[name] = {"name": inner} if isinstance(inner, str) else inner if isinstance(inner, dict) else {}
        into = into[name]
    into[path[-1]] = value
    for known in [p for p in source.places if p[: len(path)] == path]:
        del source.places[known]
    source.places[path] = f"override {override}"
