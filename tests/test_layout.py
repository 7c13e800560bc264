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
    "registry": 0,
    "specs": 0,
    "compat": 0,
    "files": 0,
    "diffusion": 1,
    "models": 2,
    "samplers": 2,
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
    code = "import dinit.pipelines.train, torch; print(torch.cuda.is_initialized())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
