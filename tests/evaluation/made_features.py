"""Cases whose features are written down, so that every figure of them is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dinit.evaluation.features.base import Extractor
from dinit.evaluation.image_features import ImageFeatures
from dinit.evaluation.metrics.base import MetricInputs, Settings

SETTINGS = Settings(kid_subset_size=20, kid_subsets=1, isc_splits=1, prc_neighborhood=3, seed=0)


@dataclass(frozen=True)
class NoExtractor(Extractor):
    """Stands where features are given."""


def featured(pooled: NDArray, **parts: Any) -> ImageFeatures:
    return ImageFeatures(len(pooled), pooled=np.asarray(pooled, dtype=np.float64), **parts)


def case(samples: ImageFeatures, reference: ImageFeatures, **parts: Any) -> MetricInputs:
    return MetricInputs(samples, reference, NoExtractor(), SETTINGS, **parts)


def pictures(count: int, side: int = 4, channels: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, side, side), generator=generator, dtype=torch.uint8)
