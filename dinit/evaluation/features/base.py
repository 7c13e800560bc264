"""Feature extractors: base class, and networks of torch-fidelity's registry."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dinit.registry import Registry

SPATIAL_CHANNELS = 7  # of a map, as sFID takes of Inception's: about as many numbers as pooled features
EXTRACTORS: Registry[type[Extractor]] = Registry("feature extractor", "dinit.evaluation.features")


@dataclass(frozen=True)
class Extracted:
    """Features of B images; None where the extractor has none of a kind.

    Attributes:
        pooled: (B, D).
        logits: (B, classes).
        spatial: (B, S), a flattened feature map.
    """

    pooled: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """Base class of feature extractors.

    Attributes:
        weights: a file or folder in place of the usual one.
        fidelity_name: its name in torch-fidelity's own registry.
        resize: description of how images reach its input size, for the protocol.
        any_size: whether images of every size are resized to its own.
    """

    weights: str | Path | None = None

    fidelity_name: ClassVar[str]
    resize: ClassVar[str]
    any_size: ClassVar[bool] = False

    def network(self, device: torch.device | str, spatial: bool = False) -> Callable[[Tensor], Extracted]:
        """Network with its weights, as a function of prepared images (B, C, H, W) uint8 on `device`.

        Args:
            device: where it runs.
            spatial: whether it gives spatial features too, where it has any.

        Raises:
            ValueError: the weights are not on this disk.
        """
        return _Fidelity(self.fidelity_name, self.weights_path(), device, spatial)

    def weights_path(self) -> Path:
        """File or folder of the weights. ValueError, with what to do, where they are not on this disk."""
        raise NotImplementedError

    def weights_file(self) -> Path:
        """File that `weights_hash` reads."""
        return self.weights_path()

    def prepare(self, images: Tensor) -> Tensor:
        """The `images` (N, C, H, W) uint8, prepared for the network. ValueError for ones that it cannot read."""
        raise NotImplementedError

    def read_labels(self, images: Tensor) -> Tensor | None:
        """Classes (N,) int64 of `images` (N, C, H, W) uint8; None where the extractor reads no classes."""
        return None

    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classes of `read_labels`; None: those of the data set that it is used on."""
        return None

    def factor_reader(self) -> Any:
        """Network that reads the factors of an image (`metrics.factors`); None where there is none."""
        return None

    def weights_hash(self) -> str:
        """First 16 digits of the SHA-256 of the weights; only reports with equal ones are comparable."""
        digest = hashlib.sha256()
        with self.weights_file().open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()[:16]


class _Fidelity:
    """Network of torch-fidelity's registry, with its default layers."""

    def __init__(self, name: str, weights: Path, device: torch.device | str, spatial: bool) -> None:
        from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY  # slow to import

        cls: Any = FEATURE_EXTRACTORS_REGISTRY[name]
        self.pooled, self.logits = map(cls.get_default_feature_layer_for_metric, ("fid", "isc"))
        self.spatial = spatial and "spatial" in cls.get_provided_features_list()
        layers = list(dict.fromkeys([self.pooled, self.logits, *(["spatial"] if self.spatial else [])]))
        network: nn.Module = cls(name, layers, feature_extractor_weights_path=str(weights), verbose=False)
        self.layers, self.run = layers, network.to(device).eval().requires_grad_(False)

    def __call__(self, images: Tensor) -> Extracted:
        found = dict(zip(self.layers, self.run(images), strict=True))
        return Extracted(found[self.pooled], found[self.logits], found.get("spatial"))
