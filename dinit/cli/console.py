"""Consoles of the command line, and the panel of an error."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

_PACKAGE = Path(__file__).parents[1]
console = Console()
errors = Console(stderr=True)


def show_error(message: str) -> None:
    """A message in a panel on the error stream, taken literally."""
    panel = Panel(Text(message), title="error", title_align="left", border_style="red")
    errors.print(panel)


def show_warnings() -> None:
    """Print dinit's own warnings as a line each, for the rest of the process, unless python -W is given.

    Python prints them with a line of code, and hides a DeprecationWarning of code outside `__main__`.
    """
    if sys.warnoptions:
        return
    warnings.filterwarnings("default", r".* is deprecated since dinit ", DeprecationWarning)
    show_other = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *place: Any, **options: Any) -> None:
        if issubclass(category, DeprecationWarning):
            errors.print(f"deprecated: {message}", markup=False, highlight=False, soft_wrap=True)
        elif category is UserWarning and Path(filename).is_relative_to(_PACKAGE):
            errors.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)
        else:
            show_other(message, category, filename, *place, **options)

    warnings.showwarning = show
