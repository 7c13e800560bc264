"""IDX files against arrays written by the format's definition: four bytes, big-endian sizes, the values."""

from __future__ import annotations

import gzip
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinit.data import DATASETS, IdxImages
from dinit.data.idx import read_idx

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 4, 4), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 2, 0, 1], dtype=np.uint8)
CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx(array: Any) -> bytes:
    kind = array.dtype.str[1:]
    head = bytes([0, 0, CODES[kind], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(f">{kind}").tobytes()


def write(folder: Path, name: str, array: Any) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    content = idx(array)
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder / name


def write_set(folder: Path, shift: int = 0) -> None:
    """MNIST's four files; pictures of the test split are one brighter, and all by `shift`."""
    for split, more in (("train", shift), ("t10k", shift + 1)):
        write(folder, f"{split}-images-idx3-ubyte.gz", IMAGES // 2 + np.uint8(more))
        write(folder, f"{split}-labels-idx1-ubyte.gz", LABELS)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("end", ["", ".gz"])
def test_every_type_is_read(kind: str, end: str, tmp_path: Path) -> None:
    array = RNG.integers(0, 100, (3, 2, 5)).astype(kind)
    found = read_idx(write(tmp_path, f"a{end}", array))
    assert found.dtype == array.dtype
    assert (found == array).all()


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte.gz"),
        ("emnist-letters-train-images-idx3-ubyte.gz", "emnist-letters-train-labels-idx1-ubyte"),
        ("kmnist-train-images-idx3-ubyte", "kmnist-train-labels-idx1-ubyte"),
    ],
)
def test_the_files_of_a_folder_are_found(images: str, labels: str, tmp_path: Path) -> None:
    for split, shift in (("train", 0), ("t10k", 1)):
        write(tmp_path, images.replace("train", split), IMAGES + np.uint8(shift))
        write(tmp_path, labels.replace("train", split), LABELS)
    for split, shift in (("train", 0), ("test", 1)):
        data = DATASETS.create(
            {"name": "idx", "path": str(tmp_path), "split": split, "class_names": ["a", "b", "c"]}
        )
        assert (data.channels, data.image_size, data.num_classes, data.class_names) == (1, 4, 3, ("a", "b", "c"))
        assert torch.equal(data.uint8_images()[:, 0], torch.from_numpy(IMAGES + np.uint8(shift)))
        assert data.labels.tolist() == LABELS.tolist()
    one = IdxImages(tmp_path / images)
    assert one.fingerprint() == IdxImages(tmp_path).fingerprint() != IdxImages(tmp_path, "test").fingerprint()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"\x89PNG....", "is no IDX file"),
        ("train-images-idx3-ubyte", b"", "is no IDX file"),
        ("train-images-idx3-ubyte", idx(IMAGES)[:-3], "is damaged: an array (6, 4, 4) has 96 bytes, it has 93"),
        ("train-images-idx3-ubyte", idx(IMAGES) + b"x", "is damaged"),
        ("train-images-idx3-ubyte", b"\0\0\x07" + idx(IMAGES)[3:], "is no IDX file"),
        ("train-images-idx3-ubyte.gz", gzip.compress(idx(IMAGES))[:-9], "cannot be read"),
        ("train-images-idx3-ubyte", idx(IMAGES[:5]), "labels must have the shape (5,)"),
        ("train-images-idx3-ubyte", idx(IMAGES.reshape(6, 2, 8)), "images must be square"),
        ("pictures", idx(IMAGES), "has no IDX file of the images of the train split"),
    ],
)
def test_other_files_are_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    write(tmp_path, "train-labels-idx1-ubyte", LABELS)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)):
        IdxImages(tmp_path)


def test_what_is_missing_or_twice_is_named(tmp_path: Path) -> None:
    images = write(tmp_path, "train-images-idx3-ubyte", IMAGES)
    with pytest.raises(ValueError, match="no labels next to it, train-labels-idx1-ubyte or"):
        IdxImages(images)
    write(tmp_path, "letters-train-images-idx3-ubyte", IMAGES)
    with pytest.raises(ValueError, match="several files of images of the train split"):
        IdxImages(tmp_path)
    with pytest.raises(ValueError, match="the splits train, test, got 'valid'"):
        IdxImages(tmp_path, "valid")
    with pytest.raises(ValueError, match="does not exist; wanted: a folder with MNIST's four files"):
        IdxImages(tmp_path / "nowhere" / "train-images-idx3-ubyte")
