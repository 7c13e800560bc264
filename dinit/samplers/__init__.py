"""Solvers, time grids, noise sources and guidance. Classes are found by name: `from dinit.samplers import DDIM`."""

from __future__ import annotations

from typing import Any

if __name__ != "dinit.samplers":
    raise ImportError("import dinit.samplers, not samplers: a second name for one folder makes a second registry")

from dinit.samplers.base import SAMPLERS, Sampler, Step
from dinit.samplers.compare import Comparison, compare
from dinit.samplers.grids.base import GRIDS, TimeGrid
from dinit.samplers.noise import NoiseSource, RecordedNoise

__all__ = [
    "GRIDS",
    "SAMPLERS",
    "Comparison",
    "NoiseSource",
    "RecordedNoise",
    "Sampler",
    "Step",
    "TimeGrid",
    "compare",
]


def __getattr__(name: str) -> Any:
    """The registered sampler or grid class called `name`, so that no list of them is kept here."""
    if not name.startswith("_"):
        for registry in (SAMPLERS, GRIDS):
            for entry in registry:
                if registry[entry].__name__ == name:
                    return registry[entry]
    raise AttributeError(f"module 'dinit.samplers' has no attribute {name!r}")
