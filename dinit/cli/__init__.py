"""The `dinit` command. Modules here import torch and the rest of dinit inside their commands only.

`dinit --help` then answers at once, and a mistake in an option is found before anything is loaded.
"""

from __future__ import annotations

from dinit.cli.app import app, main

__all__ = ["app", "main"]
