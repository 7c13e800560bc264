"""Feature extractors: what an image is turned into before two sets of images are compared."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from dinit.registry import Registry

EXTRACTORS: Registry[type[Extractor]] = Registry("feature extractor", "dinit.evaluation")


@dataclass(frozen=True)
class Extractor:
    """Base class. weights: a file or folder in place of the usual one.

    fidelity_name: its name in torch-fidelity's own registry. resize: how images reach its input size, in
    words, for the protocol.
    """

    weights: str | Path | None = None

    fidelity_name: ClassVar[str]
    resize: ClassVar[str]

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

    def weights_hash(self) -> str:
        """Start of the SHA-256 of the weights: two reports compare only where it is equal."""
        digest = hashlib.sha256()
        with self.weights_file().open("rb") as stream:
            while piece := stream.read(1 << 20):
                digest.update(piece)
        return digest.hexdigest()[:16]
