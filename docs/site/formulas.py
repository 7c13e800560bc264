"""The paragraph `Formula: $...$` of a docstring as a displayed formula of the API reference."""

from __future__ import annotations

import re
from typing import Any

import griffe

_FORMULA = re.compile(r"^(\s*)Formula: \$([^$]+)\$\.?$", re.MULTILINE)


class Formulas(griffe.Extension):
    """Docstrings are changed as soon as they are read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and "Formula: $" in obj.docstring.value:
            text = _FORMULA.sub(lambda found: f"{found[1]}$${' '.join(found[2].split())}$$", obj.docstring.value)
            obj.docstring.value = text
