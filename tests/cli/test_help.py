"""Help of every command: all of a text is shown, and paragraphs wrap to the terminal."""

from __future__ import annotations

from typing import Any

import pytest
from rich.text import Text
from typer.main import get_command

from dinit.cli.app import app

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
