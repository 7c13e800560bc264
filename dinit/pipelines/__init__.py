"""What a user runs: generate, train, evaluate; and the files that remember what was run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if __name__ != "dinit.pipelines":
    raise ImportError("import dinit.pipelines, not pipelines: a second name for one folder makes a second registry")

from dinit.compat import ensure_torchvision

if TYPE_CHECKING:
    from dinit.pipelines.generate import Pipeline

ensure_torchvision()  # before diffusers, which imports torchvision

__all__ = ["Pipeline"]


def __getattr__(name: str) -> Any:
    if name == "Pipeline":
        from dinit.pipelines.generate import Pipeline

        return Pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
