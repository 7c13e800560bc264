"""Inception-v3 as published scores use it, from weights on this disk; nothing is downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dinit.compat import ensure_torchvision
from dinit.evaluation.features.base import EXTRACTORS, Extracted, Extractor
from dinit.evaluation.features.inception_network import InceptionNetwork, resize_clean, resize_tensorflow
from dinit.evaluation.features.published import INCEPTION
from dinit.files import user_path

WEIGHTS_VARIABLE = INCEPTION.variable
_FILE = INCEPTION.name


@EXTRACTORS.register("inception-v3")
@dataclass(frozen=True)
class Inception(Extractor):
    """TensorFlow's Inception-v3 of 2015, 2048 features, as torch-fidelity ports it; grey is repeated to RGB.

    Args:
        weights: the file; by default that of the variable DINIT_INCEPTION_WEIGHTS, else the one in torch hub's
            cache.
    """

    fidelity_name: ClassVar[str] = "inception-v3-compat"
    resize: ClassVar[str] = "bilinear to 299×299 as TensorFlow 1 does, grey repeated to RGB"
    any_size: ClassVar[bool] = True

    def network(self, device: torch.device | str, spatial: bool = False) -> Callable[[Tensor], Extracted]:
        ensure_torchvision()
        return InceptionNetwork(self.weights_path(), device, resize_tensorflow, spatial)

    def weights_path(self) -> Path:
        named = self.weights or os.environ.get(WEIGHTS_VARIABLE)
        usual = Path(torch.hub.get_dir()) / "checkpoints" / _FILE
        path = user_path(named) if named else usual
        if not path.is_file():
            raise ValueError(INCEPTION.missing(path, usual))
        _refuse_pickle(path)
        return path

    def prepare(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise ValueError(f"Inception-v3 reads grey or RGB images, got {images.shape[1]} channels")
        return images.expand(-1, 3, -1, -1)


@EXTRACTORS.register("inception-v3-clean")
@dataclass(frozen=True)
class CleanInception(Inception):
    """Inception-v3 after an antialiased bicubic resize, as in clean-fid (Parmar et al. 2022).

    Args:
        weights: as for `Inception`.
    """

    resize: ClassVar[str] = "bicubic to 299×299 with antialiasing, in float, grey repeated to RGB"

    def network(self, device: torch.device | str, spatial: bool = False) -> Callable[[Tensor], Extracted]:
        ensure_torchvision()
        return InceptionNetwork(self.weights_path(), device, resize_clean, spatial)


def _refuse_pickle(path: Path) -> None:
    """ValueError for a file with more than tensors in it.

    torch-fidelity unpickles the file without restriction; a file that loads here can run no code there.
    """
    try:
        torch.load(path, map_location="meta", weights_only=True)
    except Exception as error:  # garbage makes torch's reader raise anything, KeyError included
        raise ValueError(
            f"{path} is not a file of tensors alone, so it is not loaded; "
            f"download {INCEPTION.address} (sha256 {INCEPTION.sha256})"
        ) from error
