"""A type checker sees the public surface: misspelt options, calls and imports are errors before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "typing"
ROOT = HERE.parents[1]


@pytest.fixture(scope="module")
def errors() -> dict[str, set[int]]:
    """Line numbers of pyright's errors by file name, of one process over all files."""
    if not (ROOT / "pyproject.toml").exists():
        pytest.skip("not a checkout: pyright's settings are not here")
    files = sorted(HERE.glob("*.py"))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] >= len(files), done.stderr
    found: dict[str, set[int]] = {file.name: set() for file in files}
    for one in report["generalDiagnostics"]:
        if one["severity"] == "error":
            found[Path(one["file"]).name].add(one["range"]["start"]["line"] + 1)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in HERE.glob("*.py")))
def test_errors_are_where_they_are_expected(name: str, errors: dict[str, set[int]]) -> None:
    lines = (HERE / name).read_text(encoding="utf-8").splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# error expected")}
    assert bool(expected) == (name != "accepted.py")
    missed = [lines[number - 1] for number in sorted(expected - errors[name])]
    wrong = [lines[number - 1] for number in sorted(errors[name] - expected)]
    assert not missed, f"pyright accepts these of {name}: {missed}"
    assert not wrong, f"pyright refuses these of {name}: {wrong}"
