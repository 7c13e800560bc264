"""Names and options of the registries, read from the source files: nothing that those files need is imported.

A misspelt sampler is then reported at once, and completion and `dinit list` are quick. Registries are defined, and
their entries registered, by plain statements that can be read without running them; what cannot be read is left to
the registry itself, which every command uses afterwards.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

from dinit.registry import Registry
from dinit.specs import Names

_ROOT = Path(__file__).resolve().parents[1]
PLACES = {  # kind -> (module, variable)
    "backbones": ("dinit.models.base", "BACKBONES"),
    "processes": ("dinit.diffusion.process", "PROCESSES"),
    "parameterizations": ("dinit.diffusion.parameterization", "PARAMETERIZATIONS"),
    "samplers": ("dinit.samplers.base", "SAMPLERS"),
    "grids": ("dinit.samplers.grids.base", "GRIDS"),
    "guidance": ("dinit.samplers.guidance.base", "GUIDANCES"),
    "datasets": ("dinit.data.base", "DATASETS"),
    "features": ("dinit.evaluation.features.base", "EXTRACTORS"),
    "metrics": ("dinit.evaluation.metrics.base", "METRICS"),
    "weightings": ("dinit.training.losses.weighting", "WEIGHTINGS"),
    "time-samplers": ("dinit.training.losses.times", "TIME_SAMPLERS"),
    "loss-terms": ("dinit.training.losses.terms", "LOSS_TERMS"),
    "encoders": ("dinit.training.regularizers.encoders", "ENCODERS"),
    "layouts": ("dinit.checkpoints.layouts.base", "LAYOUTS"),
    "operators": ("dinit.inverse.operators.base", "OPERATORS"),
    "editing-methods": ("dinit.inverse.editing.base", "EDITING_METHODS"),
    "posterior-samplers": ("dinit.inverse.samplers.base", "POSTERIOR_SAMPLERS"),
    "caches": ("dinit.reuse.caches.base", "CACHES"),
    "edits": ("dinit.reuse.edits.base", "EDITS"),
}
_TYPES = {
    **vars(typing),
    "Path": Path,
    "Sequence": Sequence,
    "Mapping": Mapping,
    "Callable": Callable,
    "Names": Names,
}
_OF_FIELDS = {"dataclass", "config_from_fields"}  # decorators that make arguments of a class's fields

Options = dict[str, tuple[Any, bool]]  # name -> (type, whether it has a default)


@lru_cache
def registry_of(kind: str) -> SourceRegistry:
    """What the source files say of a registry; kind: a key of PLACES."""
    module, variable = PLACES[kind]
    return SourceRegistry(module, variable)


class SourceRegistry(Registry[Any]):
    """A registry whose entries are stand-ins with the name, docstring and options of the real ones.

    `names`, `resolve`, `parse` and `summary` are those of the registry, and `check` reports what its `create` would
    report of names and options. Values that only the real class can check are left to it.

    Args:
        module: where the registry is defined.
        variable: its name there.
    """

    def __init__(self, module: str, variable: str) -> None:
        self._variable = variable
        self._source = _Source.of(module)
        call = self._source.value_of(variable)
        if not isinstance(call, ast.Call):
            raise ValueError(f"{module}.{variable} is not defined by a call")
        kind, package = (ast.literal_eval(argument) for argument in call.args)
        given = {one.arg: one.value for one in call.keywords}
        subfolders = ast.literal_eval(given["subfolders"]) if "subfolders" in given else True
        advise = self._source.imported(given["advise"]) if "advise" in given else None
        also = ast.literal_eval(given["also"]) if "also" in given else ()
        super().__init__(kind, package, subfolders, advise, also)
        self._files = "**/*.py" if subfolders else "*.py"
        self._unread: set[str] = set()  # entries whose options could not be read

    def check(self, spec: str | Mapping[str, Any], more: Sequence[str] = ()) -> None:
        """Whether `create` would know the names.

        Args:
            spec: NAME[:KEY=VALUE,…], or a mapping with `name`.
            more: further 'KEY=VALUE', with a text.

        Raises:
            ValueError: an unknown name or option, an option that is needed and missing, text of another form.
        """
        given = self.parse(spec, more) if isinstance(spec, str) else spec
        name, _ = self.resolve(given["name"])
        if name not in self._unread:
            self.create(given)

    def listed(self) -> dict[str, str]:
        """Name, in order, to the first line of the docstring and the entry that this one is a special case of.

        Only the beginnings of classes are read, which takes a fraction of the time of reading all options.
        """
        head = re.compile(
            rf'^@{self._variable}\.register\(.*?^(?:class|def) .*?:\n(?:    r?""".*?""")?', re.MULTILINE | re.DOTALL
        )
        found = {}
        for text in self._texts():
            for match in head.finditer(text):
                (node,) = ast.parse(f"{match[0]}\n    pass").body
                assert isinstance(node, ast.ClassDef | ast.FunctionDef)
                for line in self._registered(node):
                    arguments = [*line.args[:1], *(one.value for one in line.keywords)]
                    plain = all(isinstance(one, ast.Constant | ast.Dict | ast.Tuple) for one in arguments)
                    source = _Source("" if plain else text)
                    name, how = source.literal(line.args[0]), {one.arg: one.value for one in line.keywords}
                    if "listed" in how and not source.literal(how["listed"]):
                        continue
                    equal = source.literal(how["special_case_of"]) if "special_case_of" in how else None
                    summary = (ast.get_docstring(node) or "").split("\n", 1)[0]
                    found[name] = summary + (f" (special case: equals {equal} at its defaults)" if equal else "")
        return dict(sorted(found.items()))

    def _texts(self) -> Iterator[str]:
        """Contents of the files that register entries."""
        # Some entries lie next to what else needs them.
        rooms = sorted({".".join(package.split(".")[:2]) for package in self._packages})
        for path in (one for room in rooms for one in sorted(_folder(room).glob(self._files))):
            text = path.read_text(encoding="utf-8")
            if f"@{self._variable}.register(" in text:
                yield text

    def _registered(self, node: ast.ClassDef | ast.FunctionDef) -> list[ast.Call]:
        """The decorators that enter a class or function."""
        calls = [line for line in node.decorator_list if isinstance(line, ast.Call)]
        return [line for line in calls if ast.unparse(line.func) == f"{self._variable}.register"]

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True  # first, because `register` may look names up
        for text in self._texts():
            source = _Source(text)
            for node in source.tree.body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef):
                    self._enter(source, node)

    def _enter(self, source: _Source, node: ast.ClassDef | ast.FunctionDef) -> None:
        for line in self._registered(node):
            name = source.literal(line.args[0])
            how = {one.arg: source.literal(one.value) for one in line.keywords if one.arg}
            options = source.options(node)
            if options is None:
                self._unread.add(name)
            old = source.attribute(node, "renamed_options") or {}
            self.register(name, **how)(_stand_in(node, options or {}, old))


def _stand_in(node: ast.ClassDef | ast.FunctionDef, options: Options, renamed: Mapping[str, str]) -> type:
    """A class of this name and docstring that can be made with these options."""
    import inspect

    kind = inspect.Parameter.KEYWORD_ONLY
    empty = inspect.Parameter.empty
    parameters = [
        inspect.Parameter(name, kind, default=None if optional else empty, annotation=hint)
        for name, (hint, optional) in options.items()
    ]

    def make(self: Any, **_: Any) -> None:
        """Takes what the signature lists."""

    make.__annotations__ = {name: hint for name, (hint, _) in options.items()}
    contents = {
        "__doc__": ast.get_docstring(node) or "",
        "__init__": make,
        "__signature__": inspect.Signature(parameters),
        "renamed_options": renamed,
    }
    return type(node.name, (), contents)


class _Source:
    """One source file, as its statements."""

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)

    @classmethod
    @lru_cache
    def of(cls, module: str) -> _Source:
        """A module of dinit."""
        path = _folder(module)
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        return cls(file.read_text(encoding="utf-8"))

    def value_of(self, name: str) -> ast.expr | None:
        """What a name of the module is set to."""
        for node in self.tree.body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name:
                return node.value
            if isinstance(node, ast.Assign) and any(ast.unparse(one) == name for one in node.targets):
                return node.value
        return None

    def literal(self, node: ast.expr) -> Any:
        """A written-out value, also made of constants of the module. ValueError for any other."""
        names = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
        known = {name: self.literal(value) for name in names if (value := self.value_of(name)) is not None}
        try:
            return eval(compile(ast.Expression(node), "source", "eval"), {"__builtins__": {}, **known})
        except NameError as error:
            raise ValueError(f"{ast.unparse(node)} is not written out: {error}") from error

    def imported(self, node: ast.expr) -> Any:
        """What an imported name stands for; its module is imported."""
        module, name = self.home(ast.unparse(node))
        return getattr(importlib.import_module(module), name)

    def home(self, name: str) -> tuple[str, str]:
        """The module from which a name is imported, and its name there. ValueError for another name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return node.module, alias.name
        raise ValueError(f"{name} is not imported from a module")

    def attribute(self, node: ast.ClassDef | ast.FunctionDef, name: str) -> Any:
        """The written-out value of a class attribute; None where it has none."""
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and ast.unparse(line.target) == name and line.value is not None:
                return self.literal(line.value)
            if isinstance(line, ast.Assign) and ast.unparse(line.targets[0]) == name:
                return self.literal(line.value)
        return None

    def options(self, node: ast.ClassDef | ast.FunctionDef) -> Options | None:
        """The arguments of a class or function; None where they cannot be read."""
        if isinstance(node, ast.FunctionDef):
            return _arguments(node.args, drop=0)
        made = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        if made:
            return _arguments(made[0].args, drop=1)
        bases = [self._base(base) for base in node.bases]
        marks = {ast.unparse(line).partition("(")[0] for line in node.decorator_list}
        if marks.isdisjoint(_OF_FIELDS):
            return next((found for found in bases if found), None if None in bases else {})
        if None in bases:
            return None
        fields: Options = {}
        for found in reversed(bases):
            fields |= found or {}
        return fields | _fields(node)

    def _base(self, node: ast.expr) -> Options | None:
        """The arguments of a base class; none where it is not one of dinit."""
        name = ast.unparse(node).partition("[")[0]
        own = [one for one in self.tree.body if isinstance(one, ast.ClassDef) and one.name == name]
        if own:
            return self.options(own[0])
        try:
            module, name = self.home(name)
        except ValueError:
            return None
        if not module.startswith("dinit."):
            return {}
        source = _Source.of(module)
        own = [one for one in source.tree.body if isinstance(one, ast.ClassDef) and one.name == name]
        return source.options(own[0]) if own else None


def _arguments(arguments: ast.arguments, drop: int) -> Options | None:
    if arguments.vararg or arguments.kwarg:
        return None
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = list(zip(positional, defaults, strict=True))
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {one.arg: (_type(one.annotation), default is not None) for one, default in pairs[drop:]}


def _fields(node: ast.ClassDef) -> Options:
    """The fields of a dataclass's own body."""
    found: Options = {}
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or "ClassVar" in ast.unparse(line.annotation):
            continue
        value = line.value
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
            how = {one.arg: one.value for one in value.keywords}
            if "init" in how and not ast.literal_eval(how["init"]):
                continue
            value = how.get("default", how.get("default_factory"))
        found[ast.unparse(line.target)] = (_type(line.annotation), value is not None)
    return found


def _type(annotation: ast.expr | None) -> Any:
    """The type that an annotation means; Any where its names are not those of Python's own types."""
    if annotation is None:
        return Any
    try:
        found = eval(compile(ast.Expression(annotation), "annotation", "eval"), dict(_TYPES))
    except (NameError, TypeError, AttributeError):
        return Any
    return NoneType if found is None else found


def _folder(module: str) -> Path:
    return _ROOT.joinpath(*module.split(".")[1:])
