"""The shipped glyphs classifier as a feature extractor of torch-fidelity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from dinit.compat import ensure_torchvision

ensure_torchvision()  # before torch_fidelity, which imports torchvision

from torch_fidelity import register_feature_extractor  # noqa: E402

from dinit.evaluation.features.base import EXTRACTORS  # noqa: E402
from dinit.evaluation.features.classifier_features import ClassifierExtractor, ClassifierFeatures  # noqa: E402
from dinit.evaluation.features.glyphs_classifier import (  # noqa: E402
    SHIPPED,
    GlyphsClassifier,
    load_glyphs_classifier,
    read_glyphs,
    shrink,
)

_NAME = "glyphs-classifier"


class FidelityGlyphs(ClassifierFeatures):
    """Gives "pooled" (B, 112), "logits" (B, 36) and "spatial" (B, 448), of the second 8×8 map."""

    @staticmethod
    def read(folder: str) -> GlyphsClassifier:
        return GlyphsClassifier.from_pretrained(folder)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.classifier.maps(images)
        pooled = maps[-1].mean(dim=(2, 3))
        return pooled, self.classifier.head(pooled), maps[3]


register_feature_extractor(_NAME, FidelityGlyphs)


@EXTRACTORS.register(_NAME)
@dataclass(frozen=True)
class GlyphsExtractor(ClassifierExtractor):
    """Glyphs classifier as an extractor of 112 pooled features and labels; RGB images, 32×32 or a multiple.

    Args:
        weights: folder of a glyphs classifier; by default the shipped one.
    """

    fidelity_name: ClassVar[str] = _NAME
    resize: ClassVar[str] = "mean over squares to 32×32"
    shipped: ClassVar[Path] = SHIPPED
    load = staticmethod(load_glyphs_classifier)

    def prepare(self, images: Tensor) -> Tensor:
        shrink(images[:1].float())  # ValueError for images that it cannot read
        return images

    def class_names(self) -> tuple[str, ...]:
        return self.classifier.config.class_names

    def factor_reader(self) -> GlyphsClassifier:
        return self.classifier

    def read_labels(self, images: Tensor) -> Tensor:
        return read_glyphs(images, self.classifier).characters.argmax(dim=1)
