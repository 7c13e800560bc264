"""Help of every command: all of a text is shown, and paragraphs wrap to the terminal. Lines about old names."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from rich.text import Text
from typer.main import get_command

from dinit import _deprecate
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
