"""Names to classes: the one list that the command line, the docs and the conformance tests read."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

T = TypeVar("T")


def suggest(name: str, known: list[str]) -> str:
    """The tail of an 'unknown name' message: the nearest known name, if any is near, and all of them."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} (known: {', '.join(known)})"


class UnknownName(KeyError, ValueError):
    """A name that no registry entry has. Its message names the nearest entry and lists all."""

    def __str__(self) -> str:  # KeyError would print the repr, quotes and all
        return str(self.args[0])


class Registry(Generic[T]):
    """A mapping from public names to classes (or functions).

    kind: the noun used in messages ("sampler"). package: its modules are imported on the first look-up, so
    that an entry lives in one file and is listed nowhere else. Registering a name twice is an error.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, T] = {}
        self._loaded = False

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator: enter the class or function under `name` (lower case, words joined by '-')."""

        def enter(entry: Any) -> Any:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is already registered by {self._entries[name]!r}")
            self._entries[name] = entry
            entry.registry_name = name
            return entry

        return enter

    def names(self) -> list[str]:
        """All names, sorted."""
        self._load()
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._entries

    def __getitem__(self, name: str) -> T:
        """The entry. Raises UnknownName (a KeyError and a ValueError) with the nearest known name."""
        self._load()
        try:
            return self._entries[name]
        except (KeyError, TypeError):
            raise UnknownName(f"unknown {self.kind} {name!r}{suggest(str(name), self.names())}") from None

    def create(self, spec: Any, **options: Any) -> Any:
        """An instance from a name, a mapping `{"name": ..., **options}`, or an instance (returned as it is).

        Raises UnknownName for a name, ValueError for an option that the entry does not have.
        """
        if isinstance(spec, Mapping):
            given = dict(spec)
            if "name" not in given:
                raise ValueError(f"a {self.kind} given as a mapping needs a 'name', got {dict(spec)!r}")
            return self.create(given.pop("name"), **given, **options)
        if not isinstance(spec, str):
            if options:
                raise ValueError(f"options {sorted(options)} need a {self.kind} name, got an object {spec!r}")
            return spec
        entry: Any = self[spec]
        accepted = [p for p in inspect.signature(entry).parameters if p != "self"]
        for option in options:
            if option not in accepted:
                known = suggest(option, accepted) if accepted else "; it takes none"
                raise ValueError(f"{self.kind} {spec!r} has no option {option!r}{known}")
        return entry(**options)

    def summary(self, name: str) -> str:
        """The first line of the entry's docstring."""
        return (inspect.getdoc(self[name]) or "").split("\n", 1)[0]

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._loaded = True
