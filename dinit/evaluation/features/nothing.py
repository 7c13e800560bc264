"""No features: for evaluation without a classifier or network, by the metrics that need none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from dinit.evaluation.features.base import EXTRACTORS, Extracted, Extractor


@EXTRACTORS.register("none")
@dataclass(frozen=True)
class NoFeatures(Extractor):
    """No features at all. Only metrics of the pictures themselves are measured.

    Args:
        weights: not used.
    """

    resize: ClassVar[str] = "none"

    def network(self, device: torch.device | str, spatial: bool = False) -> Callable[[Tensor], Extracted]:
        raise ValueError("there are no features with features='none'; choose others, or `dinit classifier DATA`")

    def weights_path(self) -> Path:
        raise ValueError("features='none' has no weights")

    def weights_hash(self) -> str:
        return "none"

    def prepare(self, images: Tensor) -> Tensor:
        return images
