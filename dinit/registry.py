"""Registries: names to classes, the one list that the command line, the docs and the conformance tests read."""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from dinit._deprecate import warn_once
from dinit.arguments import check_arguments, fitted_arguments
from dinit.specs import option_kinds, parse_spec

T_co = TypeVar("T_co", covariant=True)
Entry = TypeVar("Entry")
Made = TypeVar("Made")

_CALL = ("sampler", "grid", "guidance")  # kinds that are keywords of a call too, and options of the commands
RENAMED_SINCE = "0.1"  # the version whose calls and files still read the old names of `renamed_options`


def suggest(name: str, known: list[str]) -> str:
    """The tail of an 'unknown name' message: the nearest known name, if any is near, and all of them."""
    by_lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    hint = f"; did you mean {by_lower[near[0]]!r}?" if near else ""
    return f"{hint} (known: {', '.join(known)})"


def construct(entry: Callable[..., Made], label: str, options: Mapping[str, Any]) -> Made:
    """The object of a class or function with these options, or an error that names what it accepts.

    Args:
        entry: A class or a function.
        label: What messages call it, as "sampler 'ddim'".
        options: Its keyword arguments.

    Returns:
        What `entry` returns.

    Raises:
        ValueError: An option that it does not have; one that it needs and that is missing; one of a wrong type.
    """
    parameters = inspect.signature(entry).parameters
    for option in options:
        if option not in parameters:
            known = suggest(option, list(parameters)) if parameters else "; it takes none"
            raise ValueError(f"{label} has no option {option!r}{known}")
    missing = [name for name, one in parameters.items() if one.default is one.empty and name not in options]
    if missing:
        raise ValueError(f"{label} needs a value for {', '.join(missing)}")
    if not inspect.isclass(entry):
        options = fitted_arguments(entry, options)
    try:
        return entry(**options)
    except TypeError as error:  # an option of a wrong type: "'<' not supported between instances of ..."
        given = ", ".join(f"{option}={value!r}" for option, value in options.items())
        accepted = ", ".join(f"{option}: {_annotation(parameters[option])}" for option in options)
        raise ValueError(f"{label} cannot be made with {given}: it takes {accepted} ({error})") from error


def _annotation(parameter: inspect.Parameter) -> str:
    if parameter.annotation is parameter.empty:
        return "any value"
    return str(parameter.annotation) if isinstance(parameter.annotation, str) else parameter.annotation.__name__


class UnknownName(KeyError, ValueError):
    """A name that no registry entry has. Its message names the nearest entry and lists all."""

    def __str__(self) -> str:  # KeyError would print the repr, quotes and all
        return str(self.args[0])


class Registry(Generic[T_co]):
    """Mapping from public names to classes (or functions).

    A name is found whatever its case and its `-`, `_`, spaces and other punctuation, with `+` for `p`: 'DDIM',
    'dpmpp_2m' and 'DPM++ 2M' are 'ddim', 'dpmpp-2m' and 'dpmpp-2m'. So are an entry's aliases, its class name, and,
    in `create`, its class name with one of its `presets`: 'DiT-XL/2'.

    An entry may carry `renamed_options`, a mapping of old option names to new ones, which `create` still reads,
    with a DeprecationWarning.

    Args:
        kind: the noun used in messages ("sampler").
        package: its modules are imported on the first look-up, so that an entry lives in one file.
        subfolders: whether the modules of its sub-folders are imported too.
        advise: takes this registry and a name that nothing is registered under, and returns what to write in its
            place, for the message, or None.
        also: further packages that register entries here, of a higher floor.
    """

    registries: ClassVar[list[Registry[Any]]] = []  # all that exist: a name may be one of another kind

    def __init__(
        self,
        kind: str,
        package: str,
        subfolders: bool = True,
        advise: Callable[[Registry[T_co], str], str | None] | None = None,
        also: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self._packages = (package, *also)
        self._walk = pkgutil.walk_packages if subfolders else pkgutil.iter_modules
        self._advise = advise
        self._entries: dict[str, T_co] = {}
        self._known: dict[str, tuple[str, Mapping[str, Any]]] = {}  # key of a name or alias -> (name, its options)
        self._special: dict[str, str] = {}
        self._unlisted: set[str] = set()
        self._loaded = False
        Registry.registries.append(self)

    def register(
        self,
        name: str,
        *,
        aliases: Sequence[str] | Mapping[str, Mapping[str, Any]] = (),
        special_case_of: str | None = None,
        listed: bool = True,
    ) -> Callable[[Entry], Entry]:
        """Decorator: enter the class or function under `name`. A class then checks the types of its arguments.

        Args:
            name: lower case, words joined by '-'.
            aliases: other names that people write for it; a mapping where an alias stands for options as well:
                {"dpm2-a": {"solver": "dpm-2"}}. Spelling variants need none, see the class.
            special_case_of: the entry that this one equals at its default options, if there is one.
            listed: whether `names` and iteration have it. An entry that is not listed can be created by name, from
                a record of a call, once its module is imported, which may lie outside the registry's package.

        Raises:
            ValueError: a name or an alias is taken.
        """
        stands_for = {alias: aliases[alias] if isinstance(aliases, Mapping) else {} for alias in aliases}

        def enter(entry: Entry) -> Entry:
            for one, options in {name: {}, **stands_for}.items():
                taken = self._known.get(_key(one))
                if taken is not None:
                    raise ValueError(f"{self.kind} {one!r} is already registered by {self._entries[taken[0]]!r}")
                self._known[_key(one)] = (name, options)
            if isinstance(entry, type):
                check_arguments(entry)
            self._entries[name] = entry  # type: ignore[assignment]
            entry.registry_name = name  # type: ignore[attr-defined]
            if not listed:
                self._unlisted.add(name)
            if special_case_of is not None:
                self._special[name] = special_case_of
            return entry

        return enter

    def names(self, pattern: str = "*") -> list[str]:
        """All names, sorted; with a pattern, those that match it: `names("*2m*")`, with `*`, `?` and `[...]`."""
        self._load()
        listed = self._entries.keys() - self._unlisted
        return [name for name in sorted(listed) if _matches(name, pattern)]

    def presets(self, pattern: str = "*") -> list[str]:
        """Published sizes that `create` takes, as 'DiT-XL/2', in the order of the entries' own tables."""
        self._load()
        return [one for name in sorted(self._entries) for one in self._sizes(name) if _matches(one, pattern)]

    def special_case_of(self, name: str) -> str | None:
        """The entry that this one equals at its default options; None where there is none."""
        self._load()
        return self._special.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def __len__(self) -> int:
        return len(self.names())

    def __contains__(self, name: object) -> bool:
        try:
            self[name]  # type: ignore[index]
        except UnknownName:
            return False
        return True

    def __getitem__(self, name: str) -> T_co:
        """The entry.

        Raises:
            UnknownName: (a KeyError and a ValueError) no entry has this name, or it stands for options too, as
                'DiT-XL/2' does, which the class alone would lose.
        """
        found, options = self.resolve(name)
        if options:
            given = ", ".join(f"{option}={value!r}" for option, value in options.items())
            raise UnknownName(f"{self.kind} {name!r} is {found!r} with {given}: `create` makes it")
        return self._entries[found]

    def resolve(self, name: str) -> tuple[str, Mapping[str, Any]]:
        """The registered name that `name` is a spelling or an alias of, and the options that it stands for.

        Raises:
            UnknownName: with advice, or the nearest known name and all of them.
        """
        self._load()
        if isinstance(name, str):
            if name in self._entries:
                return name, {}
            key = _key(name)
            found = self._known.get(key) or self._by_class_name(key)
            if found is not None:
                return found
            advice = self._advise(self, name) if self._advise is not None else None
            if advice is None:
                advice = self._advice_on_form(name) or self._of_another_kind(name)
            if advice is not None:
                raise UnknownName(f"unknown {self.kind} {name!r}: {advice}")
        raise UnknownName(f"unknown {self.kind} {name!r}{suggest(str(name), self.names())}")

    def create(self: Registry[Callable[..., Made]], spec: Made | str | Mapping[str, Any], **options: Any) -> Made:
        """An instance from its description.

        Args:
            spec: a name; a name with options as on the command line, 'ddim:eta=0.5'; a mapping
                `{"name": ..., **options}`; or an instance, which is returned as it is.
            options: of the class; only with a name or a mapping.

        Raises:
            UnknownName: (a ValueError too) for a name that is not registered.
            ValueError: an option that the entry does not have, one that it needs, one given twice, one of a
                wrong type or value; a class in place of an instance.
        """
        if isinstance(spec, str):
            spec = self.parse(spec) if ":" in spec else {"name": spec}
        if not isinstance(spec, Mapping):
            if isinstance(spec, type):
                raise ValueError(
                    f"a {self.kind} is an object, got the class {spec.__name__}: call it, {spec.__name__}()"
                )
            if spec is None or isinstance(spec, bool | int | float | complex | bytes | list | tuple | set):
                advice = self._advise(self, str(spec)) if self._advise and isinstance(spec, int | float) else None
                tail = f"; {advice}" if advice else ""
                raise ValueError(
                    f"a {self.kind} is an object, a name or a mapping with options, got {spec!r}{tail}"
                )
            if options:
                raise ValueError(f"options {sorted(options)} need a {self.kind} name, got an object {spec!r}")
            return spec
        given = dict(spec)
        if "name" not in given:
            raise ValueError(f"a {self.kind} given as a mapping needs a 'name', got {dict(spec)!r}")
        name = given.pop("name")
        twice = sorted(given.keys() & options)
        if twice:
            raise ValueError(f"{self.kind} {name!r}: {', '.join(twice)} is given twice")
        found, defaults = self.resolve(name)
        entry: Any = self._entries[found]
        given = {**defaults, **self.current_options(found, {**given, **options})}
        return construct(entry, f"{self.kind} {name!r}", given)

    def parse(self, text: str, more: Sequence[str] = ()) -> dict[str, Any]:
        """The mapping that `create` takes, from a text of the command line.

        Args:
            text: NAME or NAME:KEY=VALUE,KEY=VALUE. Options that are texts, such as paths, are taken as typed.
            more: further 'KEY=VALUE'.

        Raises:
            ValueError: text of another form.
        """
        name = text.partition(":")[0].strip()
        try:
            found, _ = self.resolve(name)
        except UnknownName as unknown:
            try:
                parse_spec(text)
            except ValueError:  # how its options read is not known, as those of a list without brackets
                raise unknown from None
            return parse_spec(text, more)  # `create` reports the name
        entry: Any = self._entries[found]
        return parse_spec(text, more, option_kinds(entry))

    def current_options(self, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options under the names that the entry has today; a DeprecationWarning for each old one.

        Raises:
            ValueError: an option is given under both names.
        """
        renamed = getattr(self._entries[self.resolve(name)[0]], "renamed_options", {})
        current = {}
        for option, value in options.items():
            new = renamed.get(option, option)
            if new != option:
                if new in options:
                    raise ValueError(
                        f"{self.kind} {name!r}: {option!r} is the old name of {new!r}; give {new!r} alone"
                    )
                warn_once(f"option {option!r} of {self.kind} {name!r}", repr(new), RENAMED_SINCE)
            current[new] = value
        return current

    def summary(self, name: str) -> str:
        """The first line of the entry's docstring."""
        return (inspect.getdoc(self[name]) or "").split("\n", 1)[0]

    def _advice_on_form(self, name: str) -> str | None:
        """What to write in place of 'cfg=2'; None where the name is not of this form."""
        word, equals, value = name.partition("=")
        found = self._known.get(_key(word)) if equals and _key(word) else None
        if found is None or not value.strip():
            return None
        entry: Any = self._entries[found[0]]
        options = list(option_kinds(entry))
        return f"did you mean {found[0]}:{options[0]}={value.strip()}?" if options else f"did you mean {found[0]}?"

    def _of_another_kind(self, name: str) -> str | None:
        """What to write in place of the name of a grid where a sampler is wanted; None for any other name."""
        for other in Registry.registries:
            found = other._known.get(_key(name)) if self.kind in _CALL and other.kind in _CALL else None
            if found is not None and other.kind != self.kind:
                return f"it is a {other.kind}: {other.kind}={found[0]!r}, or --{other.kind} {found[0]}"
        return None

    def _by_class_name(self, key: str) -> tuple[str, Mapping[str, Any]] | None:
        """The entry whose class has this name, or this name and preset."""
        for name, entry in self._entries.items():
            if _key(getattr(entry, "__name__", "")) == key:
                return name, {}
        for name in self._entries:
            for size, arguments in self._sizes(name).items():
                if _key(size) == key:
                    return name, arguments
        return None

    def _sizes(self, name: str) -> dict[str, Mapping[str, Any]]:
        """Published names of an entry's presets, 'DiT-XL/2', with their arguments."""
        entry: Any = self._entries[name]
        return {f"{entry.__name__}-{preset}": given for preset, given in getattr(entry, "presets", {}).items()}

    def _load(self) -> None:
        if self._loaded:
            return
        for name in self._packages:
            package = importlib.import_module(name)
            for module in self._walk(package.__path__, f"{name}."):
                importlib.import_module(module.name)
        self._loaded = True


def _key(name: str) -> str:
    """What is left of a name without case and punctuation: 'DPM++ 2M' and 'dpmpp-2m' are both 'dpmpp2m'."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name.lower(), pattern.lower().replace("_", "-"))
