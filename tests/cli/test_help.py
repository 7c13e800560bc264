"""Help of every command: all of a text is shown, and paragraphs wrap to the terminal. Lines about old names."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner

from dinit import _deprecate, list_pipelines, list_recipes
from dinit.cli.app import app
from dinit.training import parse_recipe

ROOT = Path(__file__).parents[2]
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_part_of_a_help_text_is_lost_as_markup(name: str) -> None:
    """Rich drops what it reads as a tag, such as '[default: six of them]'."""
    command = COMMANDS[name]
    texts = [command.help, *(getattr(parameter, "help", None) or "" for parameter in command.params)]
    assert len(texts) > 1
    assert all(texts[:1])
    for text in texts:
        assert Text.from_markup(text).plain == text


@pytest.mark.parametrize("name", COMMANDS)
def test_paragraphs_have_no_line_breaks_of_their_own(name: str) -> None:
    assert not [part for part in COMMANDS[name].help.split("\n\n") if "\n" in part]


def rows_of_help(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Option to its row in the panels of the help, on a terminal of this width."""
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", width)
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    assert max(map(len, result.output.splitlines())) <= width
    rows: dict[str, str] = {}
    option = ""
    for line in result.output.splitlines():
        row = line.strip("│ ").removeprefix("*").strip()
        option = row.split()[0] if re.match(r"│ [* ]? {0,2}--", line) else option
        if line.startswith("│"):
            rows[option] = f"{rows.get(option, '')} {row}"
        else:
            option = ""
    return rows


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_every_default_and_range(name: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    command, rows = COMMANDS[name], rows_of_help(name, width, monkeypatch)
    function = inspect.unwrap(command.callback)
    defaults = {key: one.default for key, one in inspect.signature(function).parameters.items()}
    hints = get_type_hints(function, include_extras=True)
    for one in command.params:
        if one.param_type_name != "option" or one.hidden:
            continue
        row, usual, info = " ".join(rows[one.opts[0]].split()), defaults[one.name], get_args(hints[one.name])[1]
        if usual is inspect.Parameter.empty:
            assert "[required]" in row
        elif usual is True:
            assert f"[default: {one.opts[0][2:]}]" in row
        elif usual is not None and usual is not False:
            assert f"[default: {usual}]" in row
        for limit in (info.min, info.max):
            assert limit is None or f"={limit}]" in row or f"[{limit}<=" in row


@pytest.mark.parametrize("name", COMMANDS)
def test_every_value_has_a_word_and_every_option_a_meaning_where_it_is_not_given(name: str) -> None:
    function = inspect.unwrap(COMMANDS[name].callback)
    defaults = {key: one.default for key, one in inspect.signature(function).parameters.items()}
    for one in COMMANDS[name].params:
        assert one.metavar is not None, one.name
        if defaults[one.name] is None and one.param_type_name == "option":
            assert re.search(r"Default: |In place of|Can be repeated|Only |Without", one.help), one.name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_examples_that_parse_and_fit(name: str) -> None:
    heading, *examples = COMMANDS[name].epilog.split("\n\n")
    assert heading == "Examples"
    assert examples
    for line in examples:
        assert len(line) <= 78  # of 80, with the help's margins
        program, command, *words = shlex.split(line)
        assert (program, command) == ("dinit", name)
        COMMANDS[name].make_context(name, words)


def test_completion_offers_names_from_the_registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("digital", "photos"):
        Path(folder).mkdir()
    Path("digits.yaml").touch()
    expected = {
        "generate --sampler dpmpp-3": ["dpmpp-3m", "dpmpp-3m-sde"],
        "generate --grid k": ["karras"],
        "generate --guidance cad": ["cads"],
        "generate --end s": ["state"],
        "generate --dtype b": ["bfloat16"],
        "generate digit": [*(name for name in list_pipelines("digit*")), "digital/"],
        "train digits-di": list_recipes("digits-di*"),
        "train digits.": ["digits.yaml"],
        "evaluate x --data ph": ["photos/"],
        "evaluate x --features dino": ["dinov2-vit-l-14"],
        "verify --process ve": ["ve", "ve-discrete"],
        "list sam": ["samplers"],
        "convert --layout si": ["sit"],
        "verif": ["verify"],
    }
    for line, names in expected.items():
        words = ["dinit", *line.split()]
        variables = {
            "_DINIT_COMPLETE": "complete_bash",
            "COMP_WORDS": " ".join(words),
            "COMP_CWORD": str(len(words) - 1),
        }
        done = CliRunner().invoke(app, [], prog_name="dinit", env=variables)
        assert done.output.split() == names, line


def test_an_old_option_name_is_read_with_a_line(tmp_path: Path) -> None:
    """Of its own process, as Python hides the warning of code outside `__main__` and gives it once."""
    recipe = (ROOT / "dinit/recipes/digits-dit.yaml").read_text(encoding="utf-8")
    (tmp_path / "old.yaml").write_text(recipe.replace("base: logit-normal", "of: logit-normal"), encoding="utf-8")
    command = [sys.executable, "-m", "dinit.cli", "train", "old.yaml", "optimizer.lr=-1", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if "deprecated" in line]
    assert line.startswith("deprecated: option 'of' of time sampler 'stratified' is deprecated since dinit 0.1")


def test_old_option_names_in_a_pipelines_own_recipe_are_read_without_a_warning() -> None:
    """digits-dit's recipe has `of: logit-normal`, which its user cannot change."""
    _deprecate._warned.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        recipe = parse_recipe("{finetune: {init_from: digits-dit}, data: digits, training: {steps: 4}}")
    assert recipe.time.spec() == {"name": "stratified", "base": "logit-normal"}
