"""Hugging Face data sets: a folder that the `datasets` library saved or can read, or a name on the hub."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinit.data.base import DATASETS, ImageData
from dinit.data.folder import CorruptImages, hash_ends, reason
from dinit.data.images import check_shape, prepare
from dinit.data.labels import read_names, warn_of_empty_classes
from dinit.data.pixels import from_uint8
from dinit.data.sources import named
from dinit.files import user_path
from dinit.specs import Names

_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"  # what Dataset.save_to_disk and DatasetDict's write


@DATASETS.register("hf")
class HuggingFace(ImageData):
    """Data set of the `datasets` library: a folder of save_to_disk, or a folder or hub name for load_dataset.

    Needs the extra: pip install 'dinit[datasets]'.

    Args:
        path: the folder or name.
        size: height = width in pixels, at least 1.
        split: as for load_dataset.
        image: name of the column of images.
        label: name of the column of classes: numbers, words, or a ClassLabel, whose names are kept; None is
            unconditional.
        channels: 3 (RGB) or 1 (grey).
        config: name of the data set's configuration, as for load_dataset.
        class_names: names in the order of their numbers; by default those of the ClassLabel, or the words sorted.
        horizontal_flip: see `ImageData.sample`.

    Raises:
        ValueError: the library is not installed, or the data set, the split or a column does not exist.
    """

    def __init__(
        self,
        path: str,
        size: int,
        split: str = "train",
        image: str = "image",
        label: str | None = "label",
        channels: int = 3,
        config: str | None = None,
        class_names: Names | None = None,
        horizontal_flip: bool = False,
    ) -> None:
        check_shape(size, channels)
        self.image_size, self.channels, self.horizontal_flip = size, channels, horizontal_flip
        library = _library()
        table = _open(library, str(path), split, config)
        if not len(table):
            raise ValueError(f"the split {split!r} of {path} has no images")
        _check_column(table, "image", image, path)
        if not isinstance(table.features[image], library.Image):
            raise ValueError(f"the column {image!r} of {path} holds {table.features[image]}, not images")
        _check_images(library, table, image, path)
        self.path, self._column = str(path), image
        if label is None:
            self.labels, self.class_names = np.zeros(len(table), dtype=np.int64), ()
        else:
            _check_column(table, "label", label, path)
            names = getattr(table.features[label], "names", None) if class_names is None else class_names
            with named(path):
                self.labels, self.class_names = read_names(list(table[label]), None, names)
            warn_of_empty_classes(self.labels, self.class_names, path, stated=False, option=False)
        self.num_classes = len(self.class_names)
        self._files = [Path(file["filename"]) for file in table.cache_files]
        self._table = table.select_columns([image])

    def image(self, index: int) -> Tensor:
        name = Path(self.path) / f"row {index}"
        try:
            pixels = prepare(self._table[int(index)][self._column], self.image_size, self.channels, name)
        except Exception as error:
            raise CorruptImages([(name, reason(error))]) from error
        return from_uint8(torch.from_numpy(pixels))

    def fingerprint(self) -> str:
        """Hash of the options, the labels, and the sizes and first and last 64 KiB of the data's files."""
        options = [self.image_size, self.channels, self.horizontal_flip, self._column, self.class_names]
        digest = hashlib.sha256(json.dumps(options).encode())
        digest.update(self.labels.tobytes())
        for file in self._files:
            hash_ends(digest, file)
        if not self._files:  # held in memory
            for row in self._table.with_format("arrow").iter(64):
                digest.update(repr(row.to_pylist()).encode())
        return digest.hexdigest()[:32]


def _library() -> Any:
    """The `datasets` package, imported at its first use. ValueError where it is not installed."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            f"the data set 'hf' needs the library `datasets`, which is not installed ({error}): "
            "pip install 'dinit[datasets]'"
        ) from error
    return datasets


def _open(library: Any, path: str, split: str, config: str | None) -> Any:
    """Table of one split. ValueError, with the reason, where there is none."""
    folder = user_path(path)
    if (folder / _SAVED_SPLITS).is_file() or (folder / _SAVED).is_file():
        try:
            saved = library.load_from_disk(path)
        except Exception as error:  # the library's, pyarrow's and json's own, as the damage may be
            raise ValueError(f"{path} is no whole saved data set: {_first_line(error)}; save it again") from error
        if isinstance(saved, library.DatasetDict):
            if split not in saved:
                raise ValueError(f"{path} has the splits {', '.join(saved)}; got split {split!r}")
            return saved[split]
        if split not in ("train", str(saved.split)):  # "train" is the name of a single table without one
            raise ValueError(f"{path} is a single table, of split {saved.split}, and has no split {split!r}")
        return saved
    try:
        return library.load_dataset(path, config, split=split)
    except Exception as error:  # the same, and the hub's
        raise ValueError(
            f"load_dataset({path!r}, {config!r}, split={split!r}) gave no data set: {_first_line(error)}; wanted: "
            "a folder that save_to_disk wrote, a folder of images or parquet files, or a data set's name on the hub"
        ) from error


def _check_column(table: Any, option: str, name: str, path: str) -> None:
    if name not in table.column_names:
        hint = " (label=null for an unconditional data set)" if option == "label" else ""
        raise ValueError(f"{path} has the columns {', '.join(table.column_names)}; got {option}={name!r}{hint}")


def _check_images(library: Any, table: Any, name: str, path: str) -> None:
    """ValueError for rows without an image."""
    if not table.data.column(name).null_count:  # of all rows of the files; the table may be some of them
        return
    stored = table.select_columns([name]).cast_column(name, library.Image(decode=False))
    empty = [row for row, one in enumerate(stored[name]) if one is None]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(table)} rows of {path} have no image, the first of them row {empty[0]}"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
