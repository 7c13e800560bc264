"""Classifier features: the base class of the shipped classifiers as feature extractors of torch-fidelity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dinit.compat import ensure_torchvision
from dinit.files import user_path

ensure_torchvision()  # before torch_fidelity, which imports torchvision

from torch_fidelity import FeatureExtractorBase  # noqa: E402

from dinit.data.pixels import from_uint8  # noqa: E402
from dinit.evaluation.features.base import SPATIAL_CHANNELS, Extractor  # noqa: E402


class ClassifierFeatures(FeatureExtractorBase):
    """Gives "pooled", the last hidden layer, "logits", and "spatial", the first 7 channels of one of the maps,
    flattened with channels last; in float64, as the squared differences of FID and KID lose digits in float32.
    """

    def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str, **_: Any) -> None:
        super().__init__(name, features_list)
        self.classifier: Any = self.read(feature_extractor_weights_path)

    @staticmethod
    @abstractmethod
    def read(folder: str) -> nn.Module:
        """Classifier in a folder, in the dtype that it runs in."""

    @abstractmethod
    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled features, logits and feature map of images (B, C, H, W), float32 in [-1, 1]."""

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
        return torch.zeros(
            0, dtype=torch.uint8
        )  # abstract in the base class; not called, as can_be_compiled() is False

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        pooled, logits, places = self.features(from_uint8(input))
        spatial = places[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
        found = {"pooled": pooled, "logits": logits, "spatial": spatial}
        return tuple(found[name].double() for name in self.features_list)


@dataclass(frozen=True)
class ClassifierExtractor(Extractor):
    """Base class of extractors by a shipped classifier.

    Attributes:
        weights: folder of such a classifier; by default the shipped one.
        shipped: that folder.
        load: reads the classifier in a folder, once.
    """

    shipped: ClassVar[Path]
    load: ClassVar[Callable[[Path], Any]]

    @property
    def folder(self) -> Path:
        return user_path(self.weights) if self.weights is not None else self.shipped

    @property
    def classifier(self) -> Any:
        """The classifier, read once. ValueError for another folder."""
        return type(self).load(self.folder)

    def weights_path(self) -> Path:
        _ = self.classifier  # its ValueError is raised here, not from within torch-fidelity
        return self.folder

    def weights_file(self) -> Path:
        return self.weights_path() / "model.safetensors"
