"""Digits: the default data set, real handwritten digits that scikit-learn ships, so nothing is downloaded."""

from __future__ import annotations

from typing import Any

import numpy as np

from dinit.data.base import DATASETS, InMemory
from dinit.data.order import stratified

SPLITS = ("train", "test", "all")
_TEST_SHARE = 0.2
_SPLIT_SEED = 0  # part of the data set's definition: scores in model cards depend on it


@DATASETS.register("digits")
class Digits(InMemory):
    """1,797 handwritten digits, 8×8, grey, ten classes (scikit-learn's copy of the UCI optdigits test set).

    Pixel values 0 .. 16 become [-1, 1] exactly.

    Args:
        split: "train" (80 % of each class), "test" (the rest; the same images in every run), or "all".

    Raises:
        ValueError: another split.
    """

    features = "digits-classifier"

    def __init__(self, split: str = "train") -> None:
        if split not in SPLITS:
            raise ValueError(f"the digits have the splits {', '.join(SPLITS)}, got {split!r}")
        from sklearn.datasets import load_digits  # here: it takes a second to import

        bunch: Any = load_digits()
        labels = np.asarray(bunch.target, dtype=np.int64)
        test = stratified(labels, _TEST_SHARE, _SPLIT_SEED)
        chosen = {"train": ~test, "test": test, "all": np.ones_like(test)}[split]
        images = (np.asarray(bunch.images, dtype=np.float32) / 8.0 - 1.0)[:, None]
        super().__init__(images[chosen], labels[chosen], tuple("0123456789"), horizontal_flip=False)
        self.split = split
