"""Feature extractors: what an image is turned into before two sets of images are compared."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dinit.registry import Registry

SPATIAL_CHANNELS = 7  # of a map, as sFID takes them of Inception's: about as many numbers as it has pooled features
EXTRACTORS: Registry[type[Extractor]] = Registry("feature extractor", "dinit.evaluation.features")


@dataclass(frozen=True)
class Extracted:
    """What an extractor says of B images. pooled: (B, D). logits: (B, classes). spatial: (B, S), a flattened map
    that keeps places. None where the extractor has no such thing.
    """

    pooled: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """Base class. weights: a file or folder in place of the usual one.

    fidelity_name: its name in torch-fidelity's own registry. resize: how images reach its input size, in
    words, for the protocol. any_size: whether images of every size are resized to its own.
    """

    weights: str | Path | None = None

    fidelity_name: ClassVar[str]
    resize: ClassVar[str]
    any_size: ClassVar[bool] = False

    def network(self, device: torch.device | str, spatial: bool = False) -> Callable[[Tensor], Extracted]:
        """Opens the network: a function of prepared images (B, C, H, W) uint8 on `device`.

        spatial: whether to give the map too, where there is one. ValueError where the weights are not on this disk.
        """
        return _Fidelity(self.fidelity_name, self.weights_path(), device, spatial)

    def weights_path(self) -> Path:
        """Where the weights are. ValueError, saying what to do, where they are not on this disk."""
        raise NotImplementedError

    def weights_file(self) -> Path:
        """The one file that `weights_hash` reads."""
        return self.weights_path()

    def prepare(self, images: Tensor) -> Tensor:
        """(N, C, H, W) uint8 -> what the extractor reads. ValueError for images it cannot."""
        raise NotImplementedError

    def read_labels(self, images: Tensor) -> Tensor | None:
        """The class of each image, (N,) int64, or None where the extractor knows no classes of ours."""
        return None

    def class_names(self) -> tuple[str, ...] | None:
        """What the labels of `read_labels` stand for; None: the classes of whatever data set it is used on."""
        return None

    def factor_reader(self) -> Any:
        """A network that reads the factors an image was made of (`metrics.factors`); None: it has none."""
        return None

    def weights_hash(self) -> str:
        """Start of the SHA-256 of the weights: two reports compare only where it is equal."""
        digest = hashlib.sha256()
        with self.weights_file().open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()[:16]


class _Fidelity:
    """A network out of torch-fidelity's registry, with its own choice of layers."""

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
