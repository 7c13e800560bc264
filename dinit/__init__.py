"""dinit: any backbone × any noise process × any sampler × any guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dinit.pipelines.generate import Pipeline

__version__ = "0.1.0"

__all__ = ["Pipeline", "__version__"]


def __getattr__(name: str) -> Any:
    """`Pipeline`, and every registered backbone by its class name. On demand, so that `import dinit` is light.

    The class names are what a pipeline's model_index.json refers to: ["dinit", "DiCo"]. diffusers looks up
    there how to load one, by the base class `ModelMixin`.
    """
    if name == "Pipeline":
        from dinit.pipelines.generate import Pipeline

        return Pipeline
    if not name.startswith("_") and name[:1].isupper():
        from dinit.models.base import BACKBONES, ModelMixin

        if name == "ModelMixin":
            return ModelMixin
        for entry in BACKBONES:
            if BACKBONES[entry].__name__ == name:
                return BACKBONES[entry]
    raise AttributeError(f"module 'dinit' has no attribute {name!r}")
