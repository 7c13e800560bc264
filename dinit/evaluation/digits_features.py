"""The shipped digits classifier as a feature extractor of torch-fidelity."""

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
from dinit.evaluation.classifier import SHIPPED, DigitsClassifier, classify, load_classifier  # noqa: E402
from dinit.evaluation.features import EXTRACTORS, SPATIAL_CHANNELS, Extractor  # noqa: E402

_NAME = "digits-classifier"


class FidelityDigits(FeatureExtractorBase):
    """Provides "pooled" (B, 2 · width), the classifier's last hidden layer, "logits" (B, 10), and "spatial" (B,
    112), the first 7 channels of the 4×4 map that the pooled features are the mean of.

    In float64: the squared differences of FID and KID lose digits in float32.
    """

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any) -> None:
        super().__init__(name, features_list)
        self.classifier = DigitsClassifier.from_pretrained(feature_extractor_weights_path).double()

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
        return torch.zeros(1, 1, 8, 8, dtype=torch.uint8)

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        last = self.classifier.last_map(from_uint8(input).double())
        pooled = last.mean(dim=(2, 3))
        found = {
            "pooled": pooled,
            "logits": self.classifier.head(pooled),
            "spatial": last[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1),
        }
        return tuple(found[name] for name in self.features_list)


register_feature_extractor(_NAME, FidelityDigits)


@EXTRACTORS.register(_NAME)
@dataclass(frozen=True)
class DigitsExtractor(Extractor):
    """The shipped digits classifier's 72 pooled features; it also reads labels. 8×8 grey images only."""

    fidelity_name: ClassVar[str] = _NAME
    resize: ClassVar[str] = "none (8×8 grey)"

    def weights_path(self) -> Path:
        folder = Path(self.weights) if self.weights is not None else SHIPPED
        load_classifier(folder)  # its ValueError is raised here, not from within torch-fidelity
        return folder

    def weights_file(self) -> Path:
        return self.weights_path() / "model.safetensors"

    def prepare(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (1, 8, 8):
            raise ValueError(
                f"'{_NAME}' reads (N, 1, 8, 8) images, got {tuple(images.shape)}; "
                "for other images use features='inception-v3'"
            )
        return images

    def read_labels(self, images: Tensor) -> Tensor:
        return classify(from_uint8(images), load_classifier(self.weights_path()))[0]
