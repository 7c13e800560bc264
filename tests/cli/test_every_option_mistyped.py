"""A slip in the name of any option of any command, a missing value, and a word for a number."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from dinit.cli import app

_PROGRAM = """
import contextlib, io, json, sys
from dinit.cli import main
said = []
for line in json.load(sys.stdin):
    stream = io.StringIO()
    with contextlib.redirect_stderr(stream):
        try:
            main(line)
        except SystemExit as ended:
            code = ended.code
    said.append((code, stream.getvalue(), sorted({"torch", "diffusers", "numpy"} & set(sys.modules))))
json.dump(said, sys.stdout)
"""
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]
NEEDED = {
    "encode": ("a/b", "--data", "digits", "--out", "x"),
    "edit": ("digits-dico", "x.png", "--from", "3", "--to", "8"),
    "restore": ("digits-dico", "x.png", "--operator", "identity"),
    "list": (),
    "verify": (),
    "app": (),
}


def _slip(option: str) -> str:
    """The option with two letters swapped, or with one more where they are the same."""
    at = len(option) // 2 + 1
    return (
        f"{option[:at]}{option[at + 1 : at + 2]}{option[at]}{option[at + 2 :]}" if at + 1 < len(option) else option
    )


def _lines() -> list[tuple[list[str], str]]:
    """Wrong command lines, each with what its message has."""
    found = []
    for name, command in COMMANDS.items():
        base = [name, *NEEDED.get(name, ("digits-dico",))]
        for parameter in command.params:
            names = [one for one in (*parameter.opts, *parameter.secondary_opts) if one.startswith("--")]
            for option in names:
                slip = _slip(option) if _slip(option) != option else f"{option}z"
                flag = parameter.is_flag
                found.append(([*base, slip, *([] if flag else ["1"])], option))
                if not flag:
                    found.append(([*base, option], f"Option '{option}' requires an argument"))
                if parameter.metavar in ("N", "NUMBER"):
                    number = "a whole number" if parameter.metavar == "N" else "a number"
                    found.append(([*base, option, "abc"], f"{option} must be {number}"))
    return found


LINES = _lines()


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Exit code, message and heavy modules of every line, in one process."""
    folder: Path = tmp_path_factory.mktemp("here")
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps([line for line, _ in LINES]),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())
    return json.loads(done.stdout)


def test_every_option_is_named_in_a_message_of_a_few_lines(said: list[Any]) -> None:
    assert len(LINES) > 200
    for (line, wanted), (code, shown, heavy) in zip(LINES, said, strict=True):
        text = " ".join(shown.replace("│", " ").split())
        assert code == 2, line
        assert wanted in text, (line, text)
        assert len(shown.splitlines()) <= 24, line
        assert heavy == [], line
