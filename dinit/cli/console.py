"""Consoles of the command line, and the panel of an error."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

console = Console()
errors = Console(stderr=True)


def show_error(message: str) -> None:
    """A message in a panel on the error stream, taken literally."""
    panel = Panel(Text(message), title="error", title_align="left", border_style="red")
    errors.print(panel)


def show_deprecations() -> None:
    """Print dinit's own deprecations as a line, for the rest of the process, unless python -W is given.

    Python hides them otherwise: it shows a DeprecationWarning for code in `__main__` alone.
    """
    if sys.warnoptions:
        return
    warnings.filterwarnings("default", r".* is deprecated since dinit ", DeprecationWarning)
    show_other = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        if issubclass(category, DeprecationWarning):
            errors.print(f"deprecated: {message}", markup=False, highlight=False, soft_wrap=True)
        else:
            show_other(message, category, *place, **options)

    warnings.showwarning = show
