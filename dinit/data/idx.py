"""Images in IDX files, the format of MNIST."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinit.data.arrays import channels_first
from dinit.data.base import DATASETS, InMemory
from dinit.data.labels import check_labels, label_names, warn_of_empty_classes
from dinit.data.value_range import parse_range, range_of
from dinit.files import user_path
from dinit.specs import Names

SPLITS = ("train", "test")
_MARKS = {"train": ("train",), "test": ("t10k", "test")}  # of each split in the names of its files
_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}  # by the third byte of a file
_WANTED = (
    "wanted: a folder with MNIST's four files, train-images-idx3-ubyte, train-labels-idx1-ubyte, and t10k- for the "
    "test split, each perhaps .gz; or the file of images, with that of the labels next to it"
)


@DATASETS.register("idx")
class IdxImages(InMemory):
    """Images and labels in IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST, gzipped or not.

    Args:
        path: a folder with the files of both splits, or one file of images, whose labels lie next to it under the
            same name with "labels" for "images" and idx1 for idx3. Images are (N, H, W), square.
        split: "train" or "test" (whose files are named t10k or test); of a folder only.
        class_names: one for each class; by default the numbers.
        num_classes: number of classes; by default the largest label + 1.
        horizontal_flip: see `ImageData.sample`.
        value_range: values of black and white, "LOW..HIGH"; as for `npz`.

    Raises:
        ValueError: no such files, files that are damaged or hold something else, or labels that do not fit.
    """

    def __init__(
        self,
        path: str | Path,
        split: str = "train",
        class_names: Names | None = None,
        num_classes: int | None = None,
        horizontal_flip: bool = False,
        value_range: str | Sequence[float] | None = None,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"IDX files have the splits {', '.join(SPLITS)}, got {split!r}")
        place, stated = user_path(path), parse_range(value_range)
        file = _images_of(place, split) if place.is_dir() else place
        images = channels_first(read_idx(file), None)
        values = range_of(images, stated, file)
        labels = check_labels(read_idx(_labels_of(file)), len(images))
        names = label_names(int(labels.max()) + 1, num_classes, class_names)
        warn_of_empty_classes(labels, names, file, num_classes is not None)
        super().__init__(images, labels, names, horizontal_flip, values)
        self.split = split


def read_idx(path: Path) -> NDArray:
    """The array in an IDX file, gzipped or not.

    Args:
        path: the file.

    Returns:
        The array, in the machine's byte order.

    Raises:
        ValueError: no such file, or one that is damaged or no IDX file.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {_WANTED}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy or download it again") from error
    kind, ndim = (_TYPES.get(content[2]), content[3]) if len(content) >= 4 and content[:2] == b"\0\0" else (None, 0)
    if kind is None or len(content) < 4 + 4 * ndim:
        raise ValueError(f"{path} is no IDX file: it does not begin with two bytes 0, a type and a number of axes")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", ndim, offset=4))
    expected, found = math.prod(shape) * np.dtype(kind).itemsize, len(content) - 4 - 4 * ndim
    if expected != found:
        raise ValueError(f"{path} is damaged: an array {shape} has {expected} bytes, it has {found}; copy it again")
    array = np.frombuffer(content, kind, offset=4 + 4 * ndim).reshape(shape)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _images_of(folder: Path, split: str) -> Path:
    """The file of a split's images. ValueError where there is none, or several."""
    found = sorted(
        file
        for file in folder.iterdir()
        if "images" in file.name and "idx" in file.name and any(mark in file.name for mark in _MARKS[split])
    )
    plain = [file for file in found if not (file.suffix == ".gz" and file.with_suffix("") in found)]
    if not plain:
        raise ValueError(f"{folder} has no IDX file of the images of the {split} split; {_WANTED}")
    if len(plain) > 1:
        names = ", ".join(file.name for file in plain)
        raise ValueError(f"{folder} has several files of images of the {split} split, {names}: give one as path")
    return plain[0]


def _labels_of(images: Path) -> Path:
    """The file of the labels next to one of images, gzipped or not. ValueError where there is none."""
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    for candidate in (images.with_name(name), images.with_name(f"{name}.gz")):
        if candidate.is_file() and candidate != images:
            return candidate
    raise ValueError(f"{images} has no labels next to it, {name} or {name}.gz; {_WANTED}")
