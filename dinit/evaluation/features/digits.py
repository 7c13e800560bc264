"""The shipped digits classifier as a feature extractor of torch-fidelity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from dinit.compat import ensure_torchvision

ensure_torchvision()  # before torch_fidelity, which imports torchvision

from torch_fidelity import register_feature_extractor  # noqa: E402

from dinit.data.pixels import from_uint8  # noqa: E402
from dinit.evaluation.features.base import EXTRACTORS  # noqa: E402
from dinit.evaluation.features.classifier_features import ClassifierExtractor, ClassifierFeatures  # noqa: E402
from dinit.evaluation.features.digits_classifier import SHIPPED, DigitsClassifier, classify, load_classifier  # noqa: E402

_NAME = "digits-classifier"


class FidelityDigits(ClassifierFeatures):
    """Gives "pooled" (B, 2 · width), "logits" (B, 10) and "spatial" (B, 112), of the 4×4 map that the pooled
    features are the mean of. The network runs in float64.
    """

    @staticmethod
    def read(folder: str) -> DigitsClassifier:
        return DigitsClassifier.from_pretrained(folder).double()

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        last = self.classifier.last_map(images.double())
        pooled = last.mean(dim=(2, 3))
        return pooled, self.classifier.head(pooled), last


register_feature_extractor(_NAME, FidelityDigits)


@EXTRACTORS.register(_NAME)
@dataclass(frozen=True)
class DigitsExtractor(ClassifierExtractor):
    """Digits classifier as an extractor of 72 pooled features and labels; 8×8 grey images only.

    Args:
        weights: folder of a digits classifier; by default the shipped one.
    """

    fidelity_name: ClassVar[str] = _NAME
    resize: ClassVar[str] = "none (8×8 grey)"
    shipped: ClassVar[Path] = SHIPPED
    load = staticmethod(load_classifier)

    def prepare(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(
                f"'{_NAME}' reads (N, 1, 8, 8) images, got {tuple(images.shape)}; "
                "for other images use features='inception-v3'"
            )
        return images

    def read_labels(self, images: Tensor) -> Tensor:
        return classify(from_uint8(images), self.classifier)[0]
