"""Image features: one pass of an extractor over a set of images, shared by all metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinit.evaluation.features.base import Extractor
from dinit.evaluation.metrics.gaussian import Gaussian, Moments, gaussian_of
from dinit.progress import Progress

_BATCH = 64


class ImageSource(Protocol):
    """Images that need not be in memory at once; a tensor (N, C, H, W) is one."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Tensor:
        """Images at `rows`, a slice or a list of indices, as (n, C, H, W) uint8."""
        ...


@dataclass(frozen=True)
class ImageFeatures:
    """Features of a set of images; None for what it does not have. A reference may be statistics alone.

    Attributes:
        count: number of images.
        images: the images themselves.
        labels: (N,) int64.
        pooled: (N, D) float64.
        logits: (N, classes) float64.
        statistics: Gaussian of the pooled features, where the set came with it.
        spatial: Gaussian of the spatial features.
    """

    count: int
    images: ImageSource | None = None
    labels: NDArray[np.int64] | None = None
    pooled: NDArray[np.float64] | None = None
    logits: NDArray[np.float64] | None = None
    statistics: Gaussian | None = None
    spatial: Gaussian | None = None

    @cached_property
    def gaussian(self) -> Gaussian | None:
        """Gaussian of the pooled features: the one that came with the set, else computed from them."""
        if self.statistics is not None or self.pooled is None:
            return self.statistics
        return gaussian_of(self.pooled)

    @cached_property
    def probabilities(self) -> NDArray[np.float64] | None:
        """Softmax of the logits, (N, classes)."""
        if self.logits is None:
            return None
        shifted = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)


def extract(
    images: ImageSource,
    extractor: Extractor,
    *,
    labels: Tensor | None = None,
    spatial: bool = False,
    cuda: bool | None = None,
    batch_size: int = _BATCH,
) -> ImageFeatures:
    """Features of a set of images, by one pass of the extractor.

    Args:
        images: (N, C, H, W) uint8.
        extractor: gives the features.
        labels: (N,) int64, kept with the features.
        spatial: whether to gather the statistics of spatial features, where the extractor has them.
        cuda: whether to run on a GPU; None is a GPU if there is one.
        batch_size: images of one call.

    Raises:
        ValueError: images that the extractor cannot read, or features that are not finite.
    """
    device = torch.device("cuda" if (torch.cuda.is_available() if cuda is None else cuda) else "cpu")
    network = extractor.network(device, spatial)
    pooled, logits, places = [], [], Moments()
    with Progress("features", len(images)) as progress:
        for start in range(0, len(images), batch_size):
            batch = extractor.prepare(images[start : start + batch_size])
            with torch.no_grad():
                found = network(batch.to(device))
            pooled.append(_numbers(found.pooled, start))
            if found.logits is not None:
                logits.append(_numbers(found.logits, start))
            if found.spatial is not None:
                places.update(_numbers(found.spatial, start))
            progress.update(min(start + batch_size, len(images)))
    return ImageFeatures(
        count=len(images),
        images=images,
        labels=None if labels is None else labels.cpu().numpy(),
        pooled=np.concatenate(pooled),
        logits=np.concatenate(logits) if logits else None,
        spatial=places.gaussian() if places.count else None,
    )


def spread_out(images: ImageSource, count: int = 1000) -> Tensor:
    """At most `count` images, evenly spaced over the set, as one tensor."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(np.int64))
    return images[rows.tolist()]


def _numbers(found: Tensor, start: int) -> NDArray[np.float64]:
    values = found.double().cpu().numpy()
    if not np.isfinite(values).all():
        row = start + int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ValueError(f"the features of image {row} are not finite; check the extractor's weights and dtype")
    return values
