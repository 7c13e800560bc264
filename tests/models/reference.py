"""Golden files of the published backbones: reading them and building ours from what they say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from recorded import golden_files, metadata_of, settings_of, tensors_of
from torch import Tensor

from dinit.checkpoints.keymap import load_mapped
from dinit.checkpoints.layouts import LAYOUTS, Layout, Shapes
from dinit.models.base import Backbone

GOLDEN = Path(__file__).parents[1] / "golden" / "backbones"


# The published classes that dinit has, and the repository that each is of: others use the same names.
REPOSITORIES = {
    "AutoencoderKL": "diffusers",
    "DDPM": "score_sde_pytorch",
    "DiC": "DiC",
    "DiCo": "DiCo",
    "DiT": "DiT",
    "DiTTransformer2DModel": "diffusers",
    "DiffiT": "DiffiT",
    "DisModel": "DiS",
    "EncoderUNetModel": "guided-diffusion",
    "LightningDiT": "LightningDiT",
    "MRModel": "DiMR",
    "NCSNpp": "score_sde_pytorch",
    "ResnetBlockBigGANpp": "score_sde_pytorch",
    "SiT": "SiT",
    "SuperResModel": "guided-diffusion",
    "UNet2DModel": "diffusers",
    "UNetBlock": "DiC",
    "UNetModel": "guided-diffusion",
}


@dataclass(frozen=True)
class Reference:
    """One file: weights, inputs and outputs of a published class with the arguments in its metadata."""

    path: Path

    @cached_property
    def metadata(self) -> dict[str, str]:
        return metadata_of(self.path)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.path)

    @property
    def name(self) -> str:
        """The reference class."""
        return self.metadata["class"]

    @property
    def keys(self) -> set[str]:
        """The entries of the metadata; none for a file that cannot be read."""
        try:
            return set(self.metadata)
        except ValueError:
            return set()

    @property
    def published(self) -> bool:
        """Whether dinit has this class, of this repository."""
        repository = REPOSITORIES.get(self.name)
        return repository is not None and self.metadata.get("repo", repository).split("/")[-1] == repository

    @property
    def description(self) -> str:
        """What the file holds: family, class, repository and arguments."""
        given = self.metadata
        family, repository = given.get("family", "no family"), given.get("repo", "no repository")
        return f"{family}: {self.name} of {repository} {json.dumps(self.arguments)}"

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The reference class's constructor arguments."""
        return settings_of(self.path, self.metadata)

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

    @property
    def uncovered(self) -> str:
        """Why dinit has no network with these arguments; empty where it has."""
        if not self.published:
            return "dinit does not have this class"
        try:
            if self.layout is not None:
                self.layout.arguments(self.arguments)
            if self.name == "DiTTransformer2DModel":  # whose blocks may have embeddings of their own
                self.layout.prepare(self.state)  # type: ignore[union-attr]
        except ValueError as error:
            if "not covered" in str(error) or "differ from the first block's" in str(error):
                return str(error)
        return ""

    def build(self, **overrides: Any) -> Backbone:
        """Our backbone with the file's arguments and weights, in evaluation mode."""
        layout = self.layout
        assert layout is not None
        given = {"image_size": self.tensors["in.x"].shape[-1], **layout.arguments(self.arguments), **overrides}
        try:
            return self._loaded(layout, given)
        except ValueError as error:
            # An argument that the file leaves out and that is not our default: its tensors may show it.
            shown = {name: value for name, value in layout.options(self.shapes).items() if value is not None}
            missing = {name: value for name, value in shown.items() if name not in given}
            if not missing or "does not fit this" not in str(error):
                raise
        return self._loaded(layout, {**missing, **given})

    def _loaded(self, layout: Layout, arguments: dict[str, Any]) -> Backbone:
        model = layout.model(**arguments).eval()
        load_mapped(model, layout.prepare(self.state), layout.rules)
        return model


def references(folder: Path) -> list[Reference]:
    """The files in `folder` (or in folder/backbones where there is such a folder) of networks that dinit has."""
    return [file for file in all_references(folder) if {"class", "kwargs"} <= file.keys and not file.uncovered]


def all_references(folder: Path) -> list[Reference]:
    """All files there, those that cannot be read included."""
    return [Reference(path) for path in golden_files(folder, "backbones")]


def relative_error(ours: Tensor, golden: Tensor) -> float:
    """The largest deviation of any item of the batch, relative to the item's largest value."""
    axes = tuple(range(1, golden.ndim))
    return ((ours - golden).abs().amax(axes) / golden.abs().amax(axes)).max().item()


def null_labels(model: Backbone, batch: int) -> Tensor:
    """(batch,) int64, the null label of each image."""
    return torch.full((batch,), model.num_classes)
