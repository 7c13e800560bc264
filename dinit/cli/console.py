"""Consoles of the command line, and the panel of an error."""

from __future__ import annotations

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

console = Console()
errors = Console(stderr=True)


def show_error(message: str) -> None:
    """A message in a panel on the error stream, taken literally."""
    panel = Panel(Text(message), title="error", title_align="left", border_style="red")
    errors.print(panel)
