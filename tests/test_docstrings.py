"""Docstrings of public names: each parameter under Args, each exception raised under Raises, nothing that is gone.

`python tests/test_docstrings.py` prints what is missing.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

PACKAGES = (
    "dinit",
    "dinit.samplers",
    "dinit.samplers.guidance",
    "dinit.models",
    "dinit.diffusion",
    "dinit.likelihood",
    "dinit.training",
    "dinit.evaluation",
    "dinit.data",
    "dinit.checkpoints",
    "dinit.pipelines",
)
_SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Examples?|Notes?|References?):$")
_AS_ANOTHER = re.compile(r"Arguments(,| and)? .*\bas\b( in| those of)? `")
_ENTRY = re.compile(r"^ {4}(\*{0,2}\w[*\w., ]*?)(?: \([^)]*\))?:(?:\s|$)")


def sections(docstring: str) -> dict[str, set[str]]:
    """Section to the names of its entries: {"Args": {"eta", "steps"}, "Raises": {"ValueError"}}."""
    found: dict[str, set[str]] = {}
    current = None
    for line in inspect.cleandoc(docstring).splitlines():
        heading = _SECTION.match(line)
        if heading:
            current = found.setdefault(heading[1], set())
        elif line and not line.startswith(" "):
            current = None
        elif current is not None:
            entry = _ENTRY.match(line)
            if entry:
                current.update(name.strip().lstrip("*") for name in entry[1].split(","))
    return found


def public() -> dict[str, Any]:
    """Public name to class or function: what the packages export, under the first that does."""
    found: dict[int, tuple[str, Any]] = {}
    for name in PACKAGES:
        package = importlib.import_module(name)
        for export in package.__all__:
            thing = getattr(package, export)
            if (inspect.isclass(thing) or inspect.isfunction(thing)) and thing.__module__.startswith("dinit"):
                found.setdefault(id(thing), (f"{name}.{export}", thing))
    return dict(found.values())


def documented() -> Iterator[tuple[str, Callable[[], list[str]]]]:
    """Every public name with its check; methods and properties of a class under the class's name."""
    for name, thing in public().items():
        if not inspect.isclass(thing):
            yield name, lambda thing=thing: of_function(thing)
            continue
        yield name, lambda thing=thing: of_class(thing)
        for attribute, value in vars(thing).items():
            if attribute.startswith("_") and attribute != "__call__":
                continue
            inherited = any(attribute in vars(base) for base in thing.__mro__[1:])
            function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if isinstance(function, property | cached_property) and not inherited:
                yield f"{name}.{attribute}", lambda value=function: of_property(value)
            elif inspect.isfunction(function) and not (inherited and not function.__doc__):
                yield f"{name}.{attribute}", lambda f=function, i=inherited: of_method(f, i)


def of_property(value: Any) -> list[str]:
    return [] if value.__doc__ else ["no docstring"]


def of_function(function: Any) -> list[str]:
    if not function.__doc__:
        return ["no docstring"]
    if _AS_ANOTHER.search(function.__doc__):
        return []
    return compare(sections(function.__doc__), parameters_of_function(function), raised(function))


def of_method(function: Any, overrides: bool) -> list[str]:
    """As a function. An override may rest on what it overrides; one parameter may be explained in a sentence."""
    if not function.__doc__:
        return ["no docstring"]
    if _AS_ANOTHER.search(function.__doc__):
        return []
    has, parameters = sections(function.__doc__), parameters_of_function(function)
    if "Args" not in has and len(parameters) == 1 and re.search(rf"\b{parameters[0]}\b", function.__doc__):
        parameters = []
    if overrides:
        return compare(has, parameters if "Args" in has else [], set())
    return compare(has, parameters, raised(function))


def parameters_of_function(function: Any) -> list[str]:
    """All but self; *args and **kwargs with a leading '_', which ruff asks for where there are Args (D417)."""
    parameters = inspect.signature(function).parameters.values()
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [f"_{p.name}" if p.kind in starred else p.name for p in parameters if p.name not in ("self", "cls")]


def of_class(made: type) -> list[str]:
    own = vars(made).get("__doc__") or ""
    if not own or own.startswith(f"{made.__name__}("):  # what dataclass writes where there is none
        return ["no docstring"]
    has = sections(own)
    known = has.get("Args", set()) | has.get("Attributes", set())
    for base in made.__mro__[1:]:  # fields of a base class are documented there
        if base.__module__.startswith("dinit"):
            above = sections(vars(base).get("__doc__") or "")
            known |= above.get("Args", set()) | above.get("Attributes", set())
    needed = parameters_of(made)
    stale = has.get("Args", set()) - set(needed) - {n for base in made.__mro__ for n in vars(base)}
    annotated = {name for base in made.__mro__ for name in getattr(base, "__annotations__", {})}
    wrong = [f"no parameter {name!r}" for name in sorted(stale - annotated)]
    wrong += [f"{name!r} is not under Args" for name in needed if name not in known]
    for constructor in ("__init__", "__post_init__"):
        if (
            constructor in vars(made)
            and not getattr(made, "_is_protocol", False)
            and inspect.isfunction(vars(made)[constructor])
        ):
            missing = raised(inspect.unwrap(vars(made)[constructor])) - has.get("Raises", set())
            wrong += [f"{error} is not under Raises" for error in sorted(missing)]
    return wrong


def parameters_of(made: type) -> list[str]:
    """What a class is called with."""
    if dataclasses.is_dataclass(made):
        return [field.name for field in dataclasses.fields(made) if field.init]
    constructor = next((vars(base)["__init__"] for base in made.__mro__ if "__init__" in vars(base)), None)
    if constructor is None or not getattr(constructor, "__module__", "").startswith("dinit"):
        return []
    return [name for name in inspect.signature(constructor).parameters if name != "self"]


def compare(has: dict[str, set[str]], parameters: list[str], errors: set[str]) -> list[str]:
    given = has.get("Args", set())
    wrong = [f"no parameter {name!r}" for name in sorted(given - {name.lstrip("_") for name in parameters})]
    wrong += [f"{name!r} is not under Args" for name in parameters if name not in given and name[0] != "_"]
    return wrong + [f"{error} is not under Raises" for error in sorted(errors - has.get("Raises", set()))]


def raised(function: Any) -> set[str]:
    """Names of the exceptions in `raise Name(...)` statements of the function's own body."""
    code = inspect.unwrap(function).__code__
    node = functions_of(code.co_filename).get(code.co_firstlineno)
    return set() if node is None else set(errors_in(node))


@cache
def functions_of(file: str) -> dict[int, ast.AST]:
    """First line, decorators included, to the function that starts there."""
    if file.startswith("<"):  # what dataclass wrote
        return {}
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return {
        min([node.lineno, *(d.lineno for d in node.decorator_list)]): node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }


def errors_in(node: ast.AST) -> Iterator[str]:
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.FunctionDef | ast.Lambda | ast.ClassDef):
            continue
        match inner:
            case ast.Raise(exc=ast.Call(func=ast.Name(id=error))) if (
                error[0].isupper() and error != "NotImplementedError"
            ):
                yield error
        yield from errors_in(inner)


def incomplete() -> dict[str, list[str]]:
    return {name: wrong for name, check in documented() if (wrong := check())}


def test_docstrings_of_public_names_are_complete() -> None:
    found = incomplete()
    assert not found, "\n".join(f"{name}: {'; '.join(wrong)}" for name, wrong in found.items())


def test_the_check_sees_what_is_missing() -> None:
    def good(a: int, b: int) -> None:
        """One line.

        Args:
            a: one.
            b (int): another,
                over two lines: and a colon.

        Raises:
            ValueError: never.
        """
        raise ValueError("no")

    def bad(a: int, b: int) -> None:  # noqa: D417
        """One line.

        Args:
            a: one.
            c: gone.
        """
        raise ValueError("no")

    assert of_function(good) == []
    assert of_function(bad) == ["no parameter 'c'", "'b' is not under Args", "ValueError is not under Raises"]
    assert of_function(lambda a: a) == ["no docstring"]


def test_enough_is_checked() -> None:
    assert len(list(documented())) > 300
    assert {"dinit.list_samplers", "dinit.samplers.DDIM", "dinit.Pipeline.__call__"} <= dict(documented()).keys()


if __name__ == "__main__":
    for name, wrong in incomplete().items():
        print(f"{name}: {'; '.join(wrong)}")
