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
from dinit.files import user_path


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
        trained_on: gives every image that a model of this data was trained on: both halves of a data set without
            splits.
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
    trained_on: Callable[[], Tensor]


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

    def every() -> Tensor:
        return train.uint8_images(first.tolist())

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
        all_train=every,
        trained_on=train.uint8_images if train is test else every,
    )


def _drawn(rows: NDArray[np.int64], count: int | None, seed: int) -> list[int]:
    return (rows if count is None else rows[epoch_order(seed, 0, len(rows))[:count]]).tolist()


def has_splits(dataset: str | Mapping[str, Any] | ImageData) -> bool:
    """Whether the data set is given by its name or a mapping and has splits of its own.

    One in files has them where its path is a folder with a test split in it.
    """
    if isinstance(dataset, ImageData):
        return False
    options = {"name": dataset} if isinstance(dataset, str) else dict(dataset)
    if "split" not in inspect.signature(DATASETS[options.get("name", "")]).parameters:
        return False
    if "path" not in options:
        return True
    try:
        DATASETS.create({**options, "split": "test"})
    except ValueError:  # no test split, or a mistake that the data set reports when it is made
        return False
    return user_path(str(options["path"])).is_dir()
