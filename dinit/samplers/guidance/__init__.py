"""Guidance: a frozen spec with `wrap(denoiser) -> denoiser`. Specs nest; the last of a list is the outermost."""

from __future__ import annotations

from typing import Any

from dinit.samplers.guidance.base import GUIDANCES, Guidance, Guided, apply_guidance

__all__ = ["GUIDANCES", "Guidance", "Guided", "apply_guidance"]


def __getattr__(name: str) -> Any:
    """The registered guidance class called `name`, so that no list of them is kept here."""
    if not name.startswith("_"):
        for entry in GUIDANCES:
            if GUIDANCES[entry].__name__ == name:
                return GUIDANCES[entry]
    raise AttributeError(f"module 'dinit.samplers.guidance' has no attribute {name!r}")
