"""Lazy exports: a package's written-out list of imports, resolved on first use (PEP 562)."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parent


def attach(
    package: str, file: str, elsewhere: Sequence[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The module functions that make a package's `if TYPE_CHECKING:` imports work at run time, on demand.

    The imports are written once, where a type checker, an editor and the documentation read them:

        if TYPE_CHECKING:
            from dinit.samplers.ode.ddim import DDIM as DDIM
        else:
            __getattr__, __dir__, __all__ = attach(__name__, __file__)

    so `import dinit.samplers` costs nothing, and `dinit.samplers.DDIM` imports its module the first time. In the
    `else:` branch, because a type checker would take every misspelt name for a result of `__getattr__`.

    Args:
        package: `__name__` of the package.
        file: its `__file__`, whose source is read.
        elsewhere: packages of dinit whose names are easily looked for in this one; the error names the right
            package.

    Returns:
        `__getattr__`, `__dir__` and the sorted `__all__`.

    Raises:
        AttributeError: from `__getattr__`, for a name that is not in the list; it names the package that has it,
            or the nearest name that is.
    """
    homes = exported_names(Path(file).read_text(encoding="utf-8"))
    names = sorted(homes)

    def __getattr__(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}{_hint(name, names, elsewhere)}")
        module, attribute = homes[name]
        value = getattr(importlib.import_module(module), attribute)
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *names})

    return __getattr__, __dir__, names


def exported_names(source: str) -> dict[str, tuple[str, str]]:
    """Public name to (module, attribute), of the `from … import A as A` lines under `if TYPE_CHECKING:`."""
    homes = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for line in node.body:
                if isinstance(line, ast.ImportFrom) and line.module:
                    homes |= {a.asname: (line.module, a.name) for a in line.names if a.asname}
    return homes


def _hint(name: str, names: list[str], elsewhere: Sequence[str]) -> str:
    """The end of the message for a name that a package does not have; none for a private name."""
    if name.startswith("_"):
        return ""
    for package in elsewhere:
        source = _ROOT.joinpath(*package.split(".")[1:], "__init__.py").read_text(encoding="utf-8")
        if name in exported_names(source):
            return f": it is in {package}"
    from dinit.registry import suggest

    return suggest(name, names)
