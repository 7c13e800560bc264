"""No test waits without a limit: one that hangs would otherwise take its children and the whole suite with it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
WAITS = ("join", "wait", "communicate", "acquire")  # of processes, threads, events: the limit is an argument
COMMANDS = ("run", "call", "check_call", "check_output")  # of subprocess: the limit is `timeout`


def unlimited(source: str) -> list[int]:
    """Lines of calls that may wait for ever."""
    lines = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        owner, name = call.func.value, call.func.attr
        if name in WAITS and not call.args and not call.keywords:
            lines.append(call.lineno)
        if name in COMMANDS and isinstance(owner, ast.Name) and owner.id == "subprocess":
            lines += [call.lineno] * all(keyword.arg != "timeout" for keyword in call.keywords)
    return sorted(lines)


def test_no_test_waits_without_a_limit() -> None:
    found = {str(path.relative_to(TESTS)): unlimited(path.read_text()) for path in sorted(TESTS.rglob("*.py"))}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("child.join()", True),
        ("child.join(30)", False),
        ("child.join(timeout=30)", False),
        ("event.wait()", True),
        ("process.communicate()", True),
        ("subprocess.run(command, check=True)", True),
        ("subprocess.run(command, check=True, timeout=9)", False),
        ("','.join(names)", False),
    ],
)
def test_what_waits_without_a_limit_is_found(line: str, found: bool) -> None:
    assert bool(unlimited(line)) is found
