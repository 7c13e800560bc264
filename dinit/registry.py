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
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    hint = f"; did you mean {by_lower[near[0]]!r}?" if near else ""
    return f"{hint} (known: {', '.join(known)})"


class UnknownName(KeyError, ValueError):
    """A name that no registry entry has. Its message names the nearest entry and lists all."""

    def __str__(self) -> str:  # KeyError would print the repr, quotes and all
        return str(self.args[0])


class Registry(Generic[T]):
    """A mapping from public names to classes (or functions).

    kind: the noun used in messages ("sampler"). package: its modules are imported on the first look-up, so
    that an entry lives in one file and is listed nowhere else; those of its sub-folders too, unless subfolders
    is False. Registering a name twice is an error.
    """

    def __init__(self, kind: str, package: str, subfolders: bool = True) -> None:
        self.kind = kind
        self._package = package
        self._walk = pkgutil.walk_packages if subfolders else pkgutil.iter_modules
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

        Raises UnknownName for a name, ValueError for an option that the entry does not have or one that it needs.
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
        parameters = inspect.signature(entry).parameters
        accepted = list(parameters)
        for option in options:
            if option not in accepted:
                known = suggest(option, accepted) if accepted else "; it takes none"
                raise ValueError(f"{self.kind} {spec!r} has no option {option!r}{known}")
        missing = [n for n, p in parameters.items() if p.default is p.empty and n not in options]
        if missing:
            raise ValueError(f"{self.kind} {spec!r} needs a value for {', '.join(missing)}")
        return entry(**options)

    def summary(self, name: str) -> str:
        """The first line of the entry's docstring."""
        return (inspect.getdoc(self[name]) or "").split("\n", 1)[0]

    def _load(self) -> None:
        if self._loaded:
            return
        package = importlib.import_module(self._package)
        for module in self._walk(package.__path__, f"{self._package}."):
            importlib.import_module(module.name)
        self._loaded = True
