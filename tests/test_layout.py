"""The house: imports run down the floors, the three links refuse bare imports, importing dinit stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dinit

PACKAGE = Path(dinit.__file__).parent
FLOORS = {
    "_deprecate": 0,
    "_exports": 0,
    "_listing": 4,
    "registry": 0,
    "specs": 0,
    "compat": 0,
    "files": 0,
    "memory": 0,
    "diffusion": 1,
    "models": 2,
    "samplers": 2,
    "likelihood": 3,
    "data": 3,
    "training": 3,
    "evaluation": 3,
    "checkpoints": 3,
    "conformance": 3,
    "pipelines": 4,
    "cli": 5,
}


def imports(path: Path) -> list[str]:
    """The dinit modules that a file imports, functions' own imports among them."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.append(node.module or "")
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return found


def test_no_import_runs_up_or_across() -> None:
    seen = 0
    for path in PACKAGE.rglob("*.py"):
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if here == "__init__":
            continue
        for module in imports(path):
            parts = module.split(".")
            assert parts[0] not in ("models", "samplers", "pipelines"), f"{path} imports {module}"
            if parts[0] != "dinit" or len(parts) < 2:
                continue
            seen += 1
            assert FLOORS[parts[1]] <= FLOORS[here], f"{path} imports {module}, which is on a floor above"
            across = {here, parts[1]} == {"models", "samplers"}
            assert not across, f"{path} imports {module}: backbones and solvers do not know each other"
    assert seen > 100


@pytest.mark.parametrize("name", ["samplers", "models", "pipelines"])
def test_bare_name_is_refused(name: str) -> None:
    root = PACKAGE.parent
    if not (root / name).exists():
        pytest.skip("not a checkout: the links stand at its root")
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert f"import dinit.{name}, not {name}" in done.stderr


@pytest.mark.parametrize("module", ["dinit", "dinit.cli"])
def test_import_is_light(module: str) -> None:
    code = f"import {module}, sys; print(*(m for m in ('torch', 'diffusers', 'numpy', 'PIL') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['is_available from /dinit/probe.py']"  # the probe alone
