"""Layout: imports run down and never in a circle, the three links refuse bare imports, dinit is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dinit
from dinit._exports import exported_names

PACKAGE = Path(dinit.__file__).parent
# From the ground up. What stands on a floor imports from floors below it, never from another room of its own floor.
FLOORS = (
    {
        "_deprecate",
        "arguments",
        "cards",
        "compat",
        "contents",
        "devices",
        "files",
        "memory",
        "progress",
        "specs",
        "targets",
    },
    {"registry"},
    {"_exports"},
    {"diffusion"},
    {"models", "samplers"},
    {"checkpoints", "data", "inverse", "likelihood", "reuse"},
    {"conformance", "evaluation"},
    {"posterior_conformance", "training"},
    {"pipelines"},
    {"_listing", "app"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def module_name(path: Path, root: Path) -> str:
    """dinit.samplers.ode.ddim for dinit/samplers/ode/ddim.py; a package for its __init__.py."""
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path, types: bool) -> dict[str, set[str]]:
    """The modules of the package at `root` that each of its modules imports, functions' own imports among them.

    A name imported from a package is traced to the module that the package exports it from. types: count what
    stands under `if TYPE_CHECKING:` too, but for a package's own list of exports.
    """
    paths = [path for path in sorted(root.rglob("*.py")) if path.parent.parent != root / "pretrained"]  # no modules
    files = {module_name(path, root): path for path in paths}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    exports = {
        name: exported_names(path.read_text(encoding="utf-8"))
        for name, path in files.items()
        if path.name == "__init__.py"
    }
    found: dict[str, set[str]] = {}
    for name, tree in trees.items():
        found[name] = set()
        for node in without_type_checking(tree) if not types or name in exports else ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{name}: relative import"
                for alias in node.names:
                    source = node.module or ""
                    home, _ = exports.get(source, {}).get(alias.name, (source, alias.name))
                    submodule = f"{source}.{alias.name}"
                    found[name].add(submodule if submodule in files else home)
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
    return found


def without_type_checking(tree: ast.AST) -> Iterator[ast.AST]:
    """As ast.walk, but for the bodies of `if TYPE_CHECKING:`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for rest in node.orelse:
                yield from (rest, *without_type_checking(rest))
        else:
            yield node
            yield from without_type_checking(node)


def across_or_up(found: dict[str, set[str]]) -> list[str]:
    """A sentence for each import that does not go down."""
    wrong = []
    for name, modules in found.items():
        here = name.split(".")[1] if "." in name else None
        for module in sorted(modules):
            parts = module.split(".")
            if parts[0] in ("models", "samplers", "pipelines"):
                wrong.append(f"{name} imports {module} by its bare name")
            room = parts[1] if parts[0] == "dinit" and len(parts) > 1 else None
            if here and room and room != here and FLOOR[room] >= FLOOR[here]:
                where = "a floor above" if FLOOR[room] > FLOOR[here] else "the same floor"
                wrong.append(f"{name} imports {module}, which is on {where}")
    return wrong


def circles(found: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules each of which imports all others, directly or through others."""
    reach: dict[str, set[str]] = {}
    for start in found:
        seen, open_ends = set(), [start]
        while open_ends:
            for module in found.get(open_ends.pop(), set()) - seen:
                seen.add(module)
                open_ends.append(module)
        reach[start] = seen
    return sorted(
        {tuple(sorted(m for m in reach[n] if n in reach.get(m, ()))) for n in found if n in reach[n]}  # type: ignore
    )


def test_no_import_runs_up_or_across() -> None:
    found = imports(PACKAGE, types=True)
    assert sum(map(len, found.values())) > 1000
    assert {name.split(".")[1] for name in found if "." in name} <= set(FLOOR)
    assert across_or_up(found) == []


def test_no_module_imports_itself_through_others() -> None:
    found = imports(PACKAGE, types=False)
    assert circles(found) == []


def test_the_two_checks_see_what_they_are_for(tmp_path: Path) -> None:
    root = tmp_path / "dinit"
    texts = {
        "__init__": "",
        "models/__init__": "",
        "models/one": "from dinit.samplers import Solver\nfrom dinit.diffusion.path import Path",
        "samplers/__init__": "if TYPE_CHECKING:\n    from dinit.samplers.solver import Solver as Solver",
        "samplers/solver": "def late():\n    from dinit.samplers.table import row",
        "samplers/table": "import samplers\nfrom dinit.samplers import Solver",
        "diffusion/path": "if TYPE_CHECKING:\n    from dinit.diffusion.time import t\nfrom dinit.models import one",
        "diffusion/time": "from dinit.diffusion import path",
    }
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / f"{name}.py").write_text(text)
    assert across_or_up(imports(root, types=True)) == [
        "dinit.diffusion.path imports dinit.models.one, which is on a floor above",
        "dinit.models.one imports dinit.samplers.solver, which is on the same floor",
        "dinit.samplers.table imports samplers by its bare name",
    ]
    assert circles(imports(root, types=False)) == [
        ("dinit.diffusion.path", "dinit.models.one"),
        ("dinit.samplers.solver", "dinit.samplers.table"),
    ]


@pytest.mark.parametrize("name", ["samplers", "models", "pipelines"])
def test_bare_name_is_refused(name: str) -> None:
    root = PACKAGE.parent
    if not (root / name).exists():
        pytest.skip("not a checkout: the links stand at its root")
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=root, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode != 0
    assert f"import dinit.{name}, not {name}" in done.stderr


@pytest.mark.parametrize("module", ["dinit", "dinit.cli"])
def test_import_is_light(module: str) -> None:
    code = f"import {module}, sys; print(*(m for m in ('torch', 'diffusers', 'numpy', 'PIL') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == ""


def test_importing_never_touches_cuda() -> None:
    """No context is made, which would break forked readers of data, and nothing of ours asks for the driver."""
    code = """
import sys
import torch
touched = []
def watch(name, all_callers):
    honest = getattr(torch.cuda, name)
    def watched(*arguments, **options):
        caller = sys._getframe(1).f_code.co_filename
        if all_callers or "/dinit/" in caller:
            touched.append(f"{name} from {caller}")
        return honest(*arguments, **options)
    setattr(torch.cuda, name, watched)
watch("_lazy_init", True)
for name in ("is_available", "device_count", "current_device", "get_device_name", "mem_get_info"):
    watch(name, False)
import dinit.pipelines.train, dinit.pipelines.outputs.sets, dinit.pipelines.evaluate, dinit.cli
from dinit.models.base import BACKBONES
from dinit.samplers import SAMPLERS
assert BACKBONES.names() and SAMPLERS.names()  # which imports every file of theirs
assert not torch.cuda.is_initialized()
exec(compile("torch.cuda.is_available()", "/dinit/probe.py", "exec"))
print(touched)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "['is_available from /dinit/probe.py']"  # the probe alone
