"""Real images of a data set in two disjoint sets: the reference, and the baseline that is measured like samples."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinit.data import DATASETS, ImageData, epoch_order
from dinit.data.order import stratified


@dataclass(frozen=True)
class RealImages:
    """Two disjoint sets of real images, (N, C, H, W) uint8.

    Attributes:
        train: images of the real row of a report.
        train_labels: their classes, (N,) int64.
        test: images of the reference set.
        test_labels: their classes, (N,) int64.
        name: of the data set.
        reference: description of the reference set for reports, with its fingerprint.
        class_names: of the data set.
        num_classes: of the data set.
        features: name of its feature extractor.
        all_train: gives every training image, which may be many more than `train`.
    """

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    name: str
    reference: str
    class_names: tuple[str, ...]
    num_classes: int
    features: str
    all_train: Callable[[], Tensor]


def real_images(
    dataset: str | Mapping[str, Any] | ImageData, count: int | None = None, seed: int = 0
) -> RealImages:
    """Train and test splits of a data set where it has them, otherwise two halves of every class.

    count: number of train images, drawn by `seed`; all by default, in the data set's own order. ValueError for a
    data set given with a split.
    """
    options = {"name": dataset} if isinstance(dataset, str) else dataset
    if isinstance(options, Mapping) and has_splits(options):
        if "split" in options:
            raise ValueError(f"evaluation reads both splits; leave split={options['split']!r} out")
        train, test = (DATASETS.create(options, split=split) for split in ("train", "test"))
        first, second = np.arange(len(train)), np.arange(len(test))
        name, how = str(options["name"]), "test split"
    else:
        train = test = DATASETS.create(options)
        half = stratified(train.labels, 0.5, seed=0)
        first, second = (np.flatnonzero(mask) for mask in (~half, half))
        name, how = getattr(train, "registry_name", type(train).__name__), "second half of every class"
    chosen = _drawn(first, count, seed)
    return RealImages(
        train=train.uint8_images(chosen),
        train_labels=torch.from_numpy(train.labels[chosen]),
        test=test.uint8_images(second.tolist()),
        test_labels=torch.from_numpy(test.labels[second]),
        name=name,
        reference=f"{name}, {how}, {test.fingerprint()[:16]}",
        class_names=tuple(train.class_names),
        num_classes=train.num_classes,
        features=train.features,
        all_train=lambda: train.uint8_images(first.tolist()),
    )


def _drawn(rows: NDArray[np.int64], count: int | None, seed: int) -> list[int]:
    return (rows if count is None else rows[epoch_order(seed, 0, len(rows))[:count]]).tolist()


def has_splits(dataset: str | Mapping[str, Any] | ImageData) -> bool:
    """Whether the data set is given by its name or a mapping and has splits of its own."""
    if isinstance(dataset, ImageData):
        return False
    name = dataset if isinstance(dataset, str) else dataset.get("name", "")
    return "split" in inspect.signature(DATASETS[name]).parameters
