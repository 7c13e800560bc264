"""Golden files of the published backbones: reading them and building ours from what they say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dinit.checkpoints.keymap import load_mapped
from dinit.checkpoints.layouts import LAYOUTS, Layout, Shapes
from dinit.models.base import Backbone

GOLDEN = Path(__file__).parents[1] / "golden" / "backbones"


@dataclass(frozen=True)
class Reference:
    """One file: weights, inputs and outputs of a published class with the arguments in its metadata."""

    path: Path

    @cached_property
    def metadata(self) -> dict[str, str]:
        with safe_open(self.path, "pt") as file:
            return file.metadata() or {}

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    @property
    def name(self) -> str:
        """The reference class."""
        return self.metadata["class"]

    @property
    def arguments(self) -> dict[str, Any]:
        """The reference class's constructor arguments."""
        return json.loads(self.metadata["kwargs"])

    @property
    def tolerance(self) -> float:
        return float(self.metadata["suggested_rel_tol"])

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights under the reference's names; float16 ones as float32, which is exact."""
        named = {key.removeprefix("state."): t for key, t in self.tensors.items() if key.startswith("state.")}
        return {key: t.float() if t.dtype == torch.float16 else t for key, t in named.items()}

    @property
    def shapes(self) -> Shapes:
        return {key: tuple(t.shape) for key, t in self.state.items()}

    @property
    def layout(self) -> Layout | None:
        """The checkpoint layout of the reference class; None where it is no whole backbone of ours."""
        return next((LAYOUTS[name]() for name in LAYOUTS if self.name in LAYOUTS[name].reference), None)

    def build(self, **overrides: Any) -> Backbone:
        """Our backbone with the file's arguments and weights, in evaluation mode."""
        layout = self.layout
        assert layout is not None
        arguments = {"image_size": self.tensors["in.x"].shape[-1], **layout.arguments(self.arguments), **overrides}
        model = layout.model(**arguments).eval()
        load_mapped(model, layout.prepare(self.state), layout.rules)
        return model


def references(folder: Path) -> list[Reference]:
    """The files in `folder`, or in folder/backbones where there is such a folder."""
    inner = folder / "backbones"
    return [
        Reference(path)
        for path in sorted((inner if inner.is_dir() else folder).glob("*.safetensors"))
        if "class" in Reference(path).metadata
    ]


def relative_error(ours: Tensor, golden: Tensor) -> float:
    """The largest deviation of any item of the batch, relative to the item's largest value."""
    axes = tuple(range(1, golden.ndim))
    return ((ours - golden).abs().amax(axes) / golden.abs().amax(axes)).max().item()


def null_labels(model: Backbone, batch: int) -> Tensor:
    """(batch,) int64, the null label of each image."""
    return torch.full((batch,), model.num_classes)
