"""The shipped glyphs classifier as a feature extractor of torch-fidelity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from dinit.compat import ensure_torchvision

ensure_torchvision()  # before torch_fidelity, which imports torchvision

from torch_fidelity import FeatureExtractorBase, register_feature_extractor  # noqa: E402

from dinit.data.pixels import from_uint8  # noqa: E402
from dinit.evaluation.features import EXTRACTORS, SPATIAL_CHANNELS, Extractor  # noqa: E402
from dinit.evaluation.glyphs_classifier import (  # noqa: E402
    SHIPPED,
    SIDE,
    GlyphsClassifier,
    load_glyphs_classifier,
    read_glyphs,
    shrink,
)

_NAME = "glyphs-classifier"


class FidelityGlyphs(FeatureExtractorBase):
    """Provides "pooled" (B, 112), the classifier's last hidden layer, "logits" (B, 36), and "spatial" (B, 448), the
    first 7 channels of its second 8×8 map; in float64.

    The statistics of FID and KID lose digits in float32; the network itself runs in float32.
    """

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any) -> None:
        super().__init__(name, features_list)
        self.classifier = GlyphsClassifier.from_pretrained(feature_extractor_weights_path)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("pooled", "logits", "spatial")

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "logits" if metric == "isc" else "pooled"

    @staticmethod
    def can_be_compiled() -> bool:
        return False

    @staticmethod
    def get_dummy_input_for_compile() -> Tensor:
        return torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        maps = self.classifier.maps(from_uint8(input))
        pooled = maps[-1].mean(dim=(2, 3))
        found = {
            "pooled": pooled.double(),
            "logits": self.classifier.head(pooled).double(),
            "spatial": maps[3][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1).double(),
        }
        return tuple(found[name] for name in self.features_list)


register_feature_extractor(_NAME, FidelityGlyphs)


@EXTRACTORS.register(_NAME)
@dataclass(frozen=True)
class GlyphsExtractor(Extractor):
    """The shipped glyphs classifier's 112 pooled features; it also reads labels. RGB, 32×32 or a multiple."""

    fidelity_name: ClassVar[str] = _NAME
    resize: ClassVar[str] = "mean over squares to 32×32"

    def weights_path(self) -> Path:
        folder = Path(self.weights) if self.weights is not None else SHIPPED
        load_glyphs_classifier(folder)  # its ValueError is raised here, not from within torch-fidelity
        return folder

    def weights_file(self) -> Path:
        return self.weights_path() / "model.safetensors"

    def prepare(self, images: Tensor) -> Tensor:
        shrink(images[:1].float())  # refuses what it cannot read
        return images

    def class_names(self) -> tuple[str, ...]:
        return load_glyphs_classifier(self.weights_path()).config.class_names

    def factor_reader(self) -> GlyphsClassifier:
        return load_glyphs_classifier(self.weights_path())

    def read_labels(self, images: Tensor) -> Tensor:
        return read_glyphs(images, load_glyphs_classifier(self.weights_path())).characters.argmax(dim=1)
