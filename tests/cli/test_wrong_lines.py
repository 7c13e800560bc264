"""Wrong command lines: each ends in a message that names what was given and what is accepted."""

from __future__ import annotations

import re
import shlex
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image
from safetensors.torch import save_file
from wrong_lines import LINES

from dinit.cli import main
from dinit.cli.app import app
from dinit.cli.names import registry_of
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.outputs.files import save_sheet

_INTERNAL = re.compile(
    r"not supported between|object has no attribute|NoneType|Traceback|unexpected keyword|KeyError|codec can't|"
    r"positional argument|object is not|has no len|unsupported operand|cannot be interpreted|<class |Errno|"
    r"<function|object at 0x|could not convert|is not subscriptable|takes from|multiple values"
)
_ROWS, _COLUMNS = 24, 80
COMMANDS: Any = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name in ("photos", "run", "one"):
        (folder / name).mkdir()
    pipe = Pipeline.from_pretrained("digits-dico")
    save_sheet(folder / "sheet.png", pipe, pipe([3], steps=1, output_type="raw"))
    whole = (folder / "sheet.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    shutil.copy(folder / "sheet.png", folder / "one")
    Image.new("RGB", (8, 8)).save(folder / "foreign.png")
    Image.new("RGB", (8, 8)).save(folder / "photo.jpg")
    small = "data: digits\nbackbone: {name: dit, hidden_size: 8, num_heads: 1, depth: 1}\ntraining: {steps: 1}\n"
    (folder / "recipe.yaml").write_text(small)
    (folder / "broken.yaml").write_text("data: [digits\n")
    (folder / "other.yaml").write_text("services: {web: {image: nginx}}\n")
    for name in ("notes.txt", "one/notes.txt", "plain", "model.pt"):
        (folder / name).write_text("a line of text\n")
    save_file({"weight": torch.zeros(2, 3)}, folder / "weights.safetensors")
    np.savez(folder / "stats.npz", numbers=np.zeros(3))
    return folder


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses that were connected to; none of them answers."""
    addresses: list[object] = []

    def connect(_: socket.socket, address: object) -> None:
        addresses.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", connect)
    return addresses


@pytest.mark.parametrize(("line", "named"), LINES, ids=[line for line, _ in LINES])
def test_a_wrong_line_ends_in_a_message_that_helps(
    line: str,
    named: tuple[str, ...],
    files: Path,
    connected: list[object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setenv("COLUMNS", str(_COLUMNS))
    before = sorted(files.rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        main(shlex.split(line))
    shown = "".join(capsys.readouterr())
    rows = shown.rstrip("\n").split("\n")
    text = _text(shown)
    assert stopped.value.code == 2, text
    assert not _INTERNAL.search(text), text
    assert len(rows) <= _ROWS, shown
    assert max(map(len, rows)) <= _COLUMNS, shown
    missing = [one for one in named if _squeezed(one) not in _squeezed(text)]
    assert not missing, f"{missing} not in: {text}"
    assert not connected, text
    for command in re.findall(r"`dinit ([^`]+)`", text):
        name, *arguments = shlex.split(command)
        if arguments:  # otherwise the command is only mentioned
            COMMANDS[name].make_context(name, arguments)  # UsageError where the advice itself is wrong
    for spec in re.findall(r"did you mean ([\w+-]+:[^ ?]+)\?", text):
        assert any(_is_right(kind, spec) for kind in ("samplers", "guidance", "grids")), spec
    assert sorted(files.rglob("*")) == before, "files were written"


def _is_right(kind: str, spec: str) -> bool:
    try:
        registry_of(kind).check(spec)
    except ValueError:
        return False
    return True


def _text(shown: str) -> str:
    """The message without the panel around it, on one line."""
    return " ".join(row.strip("│╭╮╰╯─ ") for row in shown.splitlines()).strip()


def _squeezed(text: str) -> str:
    """Without blanks: a panel breaks lines inside long words."""
    return re.sub(r"\s", "", text)
