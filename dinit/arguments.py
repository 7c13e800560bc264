"""Types of arguments: a class checks what it is made with by its annotations, before its own code runs."""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

Owner = TypeVar("Owner")
Check = Callable[[Any], Any]  # the value as it is to be used, or TypeError


class UnknownWord(ValueError):
    """A word, or a number, that is none of those of a Literal."""


def check_arguments(owner: type[Owner]) -> type[Owner]:
    """Decorator: make a class check its arguments by the annotations of its `__init__`.

    Numbers of NumPy and torch become plain numbers, and a list for a tuple becomes one. What functions take and
    mappings hold is left to the class, and so are ranges. A number is finite, unless its default is infinite or the
    class names it in `unlimited_options`. Names in its `ignored_options` are left out. Where it has a
    `source_option`, messages begin with the value of that argument: the file that they are about.

    Args:
        owner: The class; its `__init__` is replaced, unless it has this check already.

    Returns:
        The same class.
    """
    made = owner.__init__
    if hasattr(made, "checks_arguments") or made is object.__init__:
        return owner
    parameters = list(inspect.signature(made).parameters.values())[1:]
    infinite = {one.name for one in parameters if one.default in (math.inf, -math.inf)}
    infinite.update(getattr(owner, "unlimited_options", ()))
    names = [one.name for one in parameters]
    ignored, source = getattr(owner, "ignored_options", ()), getattr(owner, "source_option", None)
    required = [
        one.name for one in parameters if one.default is one.empty and one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    any_name = any(one.kind is one.VAR_KEYWORD for one in parameters)
    checks: dict[str, Check] = {}

    def from_source(given: Sequence[Any], named: Mapping[str, Any]) -> str:
        """The beginning of messages: the file, where there is one."""
        if source is None:
            return ""
        file = {**dict(zip(names, given, strict=False)), **named}.get(source)
        return f"{file}: " if isinstance(file, str | Path) else ""

    @functools.wraps(made)
    def init(self: Any, *given: Any, **named: Any) -> None:
        for name in ignored:
            named.pop(name, None)
        if not checks:  # only now, because an annotation may name a class that is defined later
            checks.update(_checks(made, infinite, names))
        if len(given) > len(names):
            raise TypeError(_too_many(owner, names, len(given)))
        unknown: list[UnknownWord] = []  # left to the class, which may know a better message

        def fitted(name: str, value: Any) -> Any:
            try:
                return checks[name](value) if name in checks else value
            except UnknownWord as error:
                unknown.append(error)
                return value
            except ValueError as error:
                raise ValueError(f"{file}{error}") from error

        file = from_source(given, named)
        given = tuple(fitted(name, value) for name, value in zip(names, given, strict=False))
        for name, value in named.items():
            if not (any_name or name in names):
                raise TypeError(_no_option(owner, names, name))
            named[name] = fitted(name, value)
        if missing := [name for name in required[len(given) :] if name not in named]:
            raise TypeError(f"{owner.__name__} needs a value for {', '.join(missing)}")
        try:
            made(self, *given, **named)
        except (KeyError, TypeError, AttributeError) as error:
            if unknown:
                raise unknown[0] from error
            raise
        if unknown:
            raise unknown[0]

    init.checks_arguments = True  # type: ignore[attr-defined]
    owner.__init__ = init  # type: ignore[misc]
    return owner


def fitted_arguments(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of a function, checked as `check_arguments` does those of a class."""
    checks = _checks(function, (), ())
    return {name: checks.get(name, _anything)(value) for name, value in options.items()}


def _checks(function: Callable[..., Any], infinite: Collection[str], finite: Collection[str]) -> dict[str, Check]:
    """A check of each annotated argument. A number is finite if its name is in `finite` and not in `infinite`."""
    try:
        hints = typing.get_type_hints(function)
    except NameError:  # a name that is imported for type checkers only
        return {"": _anything}
    return {"": _anything} | {
        name: _named(name, hint, name in infinite or name not in finite)
        for name, hint in hints.items()
        if name != "return"
    }


def _named(name: str, hint: Any, may_be_infinite: bool) -> Check:
    members = _members(hint)
    plain = tuple(one for one in members if one in (int, float, bool, str))
    fast = frozenset(plain if float not in plain else (*plain, int))

    def check(value: Any) -> Any:
        if type(value) in fast and (type(value) is not float or math.isfinite(value)):
            return value
        for member in members:
            try:
                fitted = _fitted(value, member)
            except TypeError:
                continue
            if not may_be_infinite and isinstance(fitted, float) and math.isinf(fitted):
                raise ValueError(f"{name} must be a finite number, got {fitted}")
            return fitted
        message = f"{name} must be {_described(members)}, got {shown(value)}{_near(value, members)}"
        raise UnknownWord(message) if _is_word(value, members) else ValueError(message)

    return check


def _is_word(value: Any, members: Sequence[Any]) -> bool:
    """Whether the value is of the type of a Literal's, and none of it."""
    return any(
        type(value) is type(one)
        for member in members
        if typing.get_origin(member) is Literal
        for one in typing.get_args(member)
    )


def _too_many(owner: type, names: Sequence[str], count: int) -> str:
    takes = f"takes {', '.join(names)}" if names else "takes no options"
    return f"{owner.__name__} {takes}; got {count} values"


def _no_option(owner: type, names: Sequence[str], name: str) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    known = f" (known: {', '.join(names)})" if names else ""
    return f"{owner.__name__} has no option {name!r}{f'; did you mean {near[0]!r}?' if near else ''}{known}"


def _anything(value: Any) -> Any:
    return value


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return tuple(inner for one in typing.get_args(hint) for inner in _members(one))
    return (hint,)


def _fitted(value: Any, hint: Any) -> Any:
    """The value as one type takes it. TypeError where it does not."""
    if hint is Any:
        return value
    if hint is types.NoneType:
        if value is not None:
            raise TypeError
        return value
    origin = typing.get_origin(hint)
    if origin is Literal:
        value = value if isinstance(value, str) else _plain(value)
        if not any(type(value) is type(one) and value == one for one in typing.get_args(hint)):
            raise TypeError
        return value
    if hint in _SIMPLE:
        return _SIMPLE[hint](value)
    if origin in (tuple, list, Sequence):
        return _sequence(value, hint, origin)
    own = isinstance(hint, type) and hint.__module__.startswith("dinit.")
    if isinstance(value, Mapping) or origin is Mapping or hint is Mapping:
        if not (isinstance(value, Mapping) and (own or origin is Mapping or hint is Mapping)):
            raise TypeError
        return value  # the class makes its objects of mappings, as files hold them
    if origin is Callable and not callable(value):
        raise TypeError
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | list | tuple | set):
        if isinstance(hint, type) and isinstance(value, hint):
            return value
        raise TypeError
    if own and not isinstance(value, hint):
        raise TypeError
    return value  # an object, which the class checks by what it does


def _sequence(value: Any, hint: Any, origin: Any) -> Any:
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) == 1:
        value = value.tolist()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise TypeError
    inner = [one for one in typing.get_args(hint) if one is not Ellipsis]
    kinds = _members(inner[0]) if len(inner) == 1 else (Any,)
    if not all(_is_plain_kind(kind) for kind in kinds):
        return value  # of objects, which the class makes of mappings
    fitted = [_first(one, kinds) for one in value]
    return tuple(fitted) if origin is tuple else fitted if not isinstance(value, tuple) else tuple(fitted)


def _is_plain_kind(kind: Any) -> bool:
    return kind in _SIMPLE or kind is types.NoneType


def _first(value: Any, kinds: Sequence[Any]) -> Any:
    for kind in kinds:
        try:
            return _fitted(value, kind)
        except TypeError:
            continue
    raise TypeError


def _plain(value: Any) -> Any:
    """The Python number of a scalar of NumPy or torch; any other value as it is."""
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


def _number(value: Any) -> Any:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or math.isnan(value):
        raise TypeError
    return value


def _whole(value: Any) -> Any:
    value = _plain(value)
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError
    return value


def _switch(value: Any) -> Any:
    value = _plain(value)
    if not isinstance(value, bool):
        raise TypeError
    return value


def _text(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if not isinstance(value, str):
        raise TypeError
    return value


def _path(value: Any) -> Any:
    if not isinstance(value, str | os.PathLike):
        raise TypeError
    return value


_SIMPLE: dict[Any, Check] = {float: _number, int: _whole, bool: _switch, str: _text, Path: _path}
_WORDS = {
    float: ("a number", "numbers"),
    int: ("a whole number", "whole numbers"),
    bool: ("true or false", "true or false"),
    str: ("a text", "texts"),
    Path: ("a path", "paths"),
    types.NoneType: ("None", "None"),
}


def _described(members: Sequence[Any]) -> str:
    """'a number', 'a whole number or None', "'midpoint' or 'heun'"."""
    return _either([word for member in members for word in _words(member)])


def _words(hint: Any) -> list[str]:
    origin = typing.get_origin(hint)
    if hint in _WORDS:
        return [_WORDS[hint][0]]
    if origin is Literal:
        return [repr(one) for one in typing.get_args(hint)]
    if origin in (tuple, list, Sequence):
        inner = typing.get_args(hint)[:1]
        kinds = [_WORDS[kind][1] for one in inner for kind in _members(one) if kind in _WORDS]
        return [f"a list of {_either(kinds)}" if kinds else "a list"]
    if origin is Mapping or hint is Mapping:
        return ["a mapping"]
    if origin is Callable:
        return ["a function"]
    name = getattr(hint, "__name__", str(hint))
    return [f"a {name}"]


def _either(words: Sequence[str]) -> str:
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} or {words[-1]}"


def _near(value: Any, members: Sequence[Any]) -> str:
    """The tail that names the nearest word, where only certain words fit."""
    words = [one for member in members if typing.get_origin(member) is Literal for one in typing.get_args(member)]
    near = difflib.get_close_matches(str(value), [one for one in words if isinstance(one, str)], n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def shown(value: Any) -> str:
    """A value that was given, in a line of a message: long ones are cut, and objects are named by their class."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | list | tuple | dict):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:77]}..."
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
