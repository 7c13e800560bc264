"""WebDataset tars as a map-style data set: samples by index, in an order that reads few tars at a time.

Not streamed through the `webdataset` package: its order depends on shuffle buffers and on the numbers of processes
and workers, so a run cannot resume exactly. Here an index of each tar is read once, and the sample at any position
of a run is known from the seed alone. Processes share each batch by rows, so that every sample is read by one of
them. Reading stays local: while a window of tars is read, nothing is read from any other.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import warnings
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinit.data.base import DATASETS, ImageData
from dinit.data.folder import CorruptImages, hash_ends, reason
from dinit.data.images import check_shape, read_image
from dinit.data.labels import read_names, warn_of_empty_classes
from dinit.data.order import epoch_order, hash_words, read_positions
from dinit.data.pixels import from_uint8
from dinit.data.sources import named
from dinit.data.tar_index import read_index
from dinit.data.tar_labels import FoundLabels, TarTexts
from dinit.files import user_path
from dinit.specs import Names

_WANTED = "wanted: a folder of .tar files, one .tar, a pattern such as train-*.tar, or train-{000..009}.tar"
_PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_OPEN = 64  # tars held open at once
_TARS, _SAMPLES = 3, 4  # separate the hash words of the two shuffles
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


@DATASETS.register("webdataset")
class WebDataset(ImageData):
    """Images in WebDataset's tars (jpg, png, webp, …, with .cls, .json or .txt), indexed once and read by offset.

    Links within a tar are followed. What is not used, and classes without an image, are named in a warning.

    Args:
        path: a folder, a .tar, a pattern, or braces such as train-{000..009}.tar.
        size: height = width in pixels, at least 1.
        channels: 3 (RGB) or 1 (grey).
        label: "none" is unconditional; "cls", "txt" or another kind of part takes its text; "folder" the name of
            the folder in the tar; any other word a field of the .json, with dots of a nested one. By default the
            .cls; or the .json's "label", "cls" or another usual name; or a .txt that is a number or a short name in
            all samples; or unconditional. Numbers are classes, words are class names.
        num_classes: number of classes; by default the largest label + 1, or the number of names.
        class_names: names in the order of their numbers; by default the numbers, or the words sorted.
        horizontal_flip: see `ImageData.sample`.
        window: tars that an epoch reads at a time, shuffled together.

    Raises:
        ValueError: tars that are missing, damaged or compressed, labels that only some samples have or that do not
            fit the classes, or other arguments that are not accepted.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        channels: int = 3,
        label: str | None = None,
        num_classes: int | None = None,
        class_names: Names | None = None,
        horizontal_flip: bool = False,
        window: int = 8,
    ) -> None:
        check_shape(size, channels)
        if isinstance(window, bool) or not isinstance(window, int) or window < 1:
            raise ValueError(f"window must be a whole number of tars >= 1, got {window!r}")
        self.image_size, self.channels, self.horizontal_flip = size, channels, horizontal_flip
        self.tars, self.window = find_tars(str(user_path(path))), window
        self._indexes = [read_index(tar) for tar in self.tars]
        self._counts = tuple(len(index.keys) for index in self._indexes)
        self._firsts = np.cumsum([0, *self._counts])
        texts = TarTexts(self.tars, self._indexes)
        labels = texts.labels(label)
        self._warn(path, texts, labels, label == "none")
        if labels.values is None:
            if num_classes or class_names:
                raise ValueError(f"num_classes and class_names need labels, and the samples of {path} have none")
            self.labels, self.class_names = np.zeros(sum(self._counts), dtype=np.int64), ()
        else:
            with named(path):
                self.labels, self.class_names = read_names(labels.values, num_classes, class_names)
            warn_of_empty_classes(self.labels, self.class_names, path, num_classes is not None)
        self.num_classes = len(self.class_names)
        self._files: dict[int, BinaryIO] = {}
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def image(self, index: int) -> Tensor:
        tar, row = self._place(index)
        name = self.tars[tar] / self._indexes[tar].keys[row]
        try:
            pixels = read_image(io.BytesIO(self._bytes(tar, row)), self.image_size, self.channels, name)
        except Exception as error:
            raise CorruptImages([(name, reason(error))]) from error
        return from_uint8(torch.from_numpy(pixels))

    def indices(self, seed: int, start: int, count: int) -> list[int]:
        """Arguments and return value as in `ImageData.indices`; the order reads from `window` tars at a time."""
        return read_positions(lambda epoch: self._order(seed, epoch), start, count, len(self))

    def _order(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Order of an epoch; the last two are kept, as a batch may span two epochs."""
        if (seed, epoch) not in self._orders:
            while len(self._orders) > 1:
                del self._orders[next(iter(self._orders))]
            self._orders[seed, epoch] = windowed_order(seed, epoch, self._counts, self.window)
        return self._orders[seed, epoch]

    def fingerprint(self) -> str:
        """Hash of the options, of each tar's index, and of its size and first and last 64 KiB."""
        options = [self.image_size, self.channels, self.horizontal_flip, self.class_names]
        digest = hashlib.sha256(json.dumps(options).encode())
        digest.update(self.labels.tobytes())
        for tar, index in zip(self.tars, self._indexes, strict=True):
            digest.update(json.dumps([tar.name, index.keys, index.offsets, index.lengths]).encode())
            hash_ends(digest, tar)
        return digest.hexdigest()[:32]

    def _place(self, index: int) -> tuple[int, int]:
        """(tar, row in it)."""
        tar = int(np.searchsorted(self._firsts, index, side="right")) - 1
        return tar, index - int(self._firsts[tar])

    def _bytes(self, tar: int, row: int) -> bytes:
        """Bytes of an image. ValueError where the tar is shorter than in its index."""
        offset, length = self._indexes[tar].offsets[row], self._indexes[tar].lengths[row]
        if not hasattr(os, "pread"):
            with self.tars[tar].open("rb") as file:
                file.seek(offset)
                found = file.read(length)
        else:  # no seek, so that workers may share a file opened before they were started
            if tar not in self._files:
                if len(self._files) >= _OPEN:
                    self._files.pop(next(iter(self._files))).close()
                self._files[tar] = self.tars[tar].open("rb", buffering=0)
            found = os.pread(self._files[tar].fileno(), length, offset)
        if len(found) != length:
            raise ValueError(f"the tar ends within it: {len(found)} of {length} bytes; was it changed?")
        return found

    def _warn(self, path: str | Path, texts: TarTexts, found: FoundLabels, unconditional: bool) -> None:
        """One warning of what is not used, and one of labels that may be meant."""
        counts: dict[str, tuple[int, str]] = {}
        for index in self._indexes:
            for what, (number, example) in index.unused.items():
                before, first = counts.get(what, (0, example))
                counts[what] = before + number, first
        if not unconditional:
            captions = {".json", ".txt", ".text"} if found.remark else set()
            counts |= {what: one for what, one in texts.unused(found.kind).items() if what not in captions}
        parts = [f"{what} ({number}, such as {example!r})" for what, (number, example) in counts.items()]
        if parts:
            warnings.warn(f"{path}: not used: {', '.join(parts)}", stacklevel=3)
        if found.remark:
            warnings.warn(f"{path}: {found.remark}", stacklevel=3)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # a worker opens the files itself


def windowed_order(seed: int, epoch: int, counts: Sequence[int], window: int) -> NDArray[np.int64]:
    """Order in which an epoch reads the samples of several tars: `window` tars at a time, shuffled together.

    counts: samples of each tar. The tars, and what each window holds, change from epoch to epoch. (sum(counts),).
    """
    firsts = np.cumsum([0, *counts]).tolist()
    tars = epoch_order(hash_words(seed, _TARS), epoch, len(counts))
    pieces = []
    for start in range(0, len(tars), window):
        members = np.concatenate([np.arange(firsts[t], firsts[t + 1]) for t in tars[start : start + window]])
        pieces.append(members[epoch_order(hash_words(seed, _SAMPLES, start), epoch, len(members))])
    return np.concatenate(pieces)


def find_tars(path: str) -> list[Path]:
    """Tars that a folder, a file, a pattern or braces match, in order. ValueError where there are none."""
    if Path(path).is_dir():
        found = sorted(tar for tar in Path(path).glob("*.tar") if not tar.name.startswith("."))
        inside = sorted(Path(path).iterdir())
        packed = [one.name for one in inside if one.name.endswith(_PACKED)]
        deeper = [str(one.relative_to(path)) for one in sorted(Path(path).glob("*/*.tar"))]
        rest = [f"{len(packed)} compressed tars, such as {packed[0]!r}, have to be unpacked"] if packed else []
        rest += [f"{len(deeper)} tars in sub-folders, such as {deeper[0]!r}, are not read"] if deeper else []
        if rest and not found:
            raise ValueError(f"{path} has no tars: {', '.join(rest)}; {_WANTED}")
        if rest:
            warnings.warn(f"{path}: {', '.join(rest)}", stacklevel=3)
    else:
        named = [path] if Path(path).is_file() else expand(path)  # a file of that very name comes first
        found = [
            tar
            for one in named
            for tar in (sorted(map(Path, glob(one))) if has_magic(one) and not Path(one).exists() else [Path(one)])
        ]
    if not found:
        raise ValueError(f"{path} has no tars; {_WANTED}")
    missing = [tar for tar in found if not tar.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{missing[0]}{more} does not exist; {_WANTED}")
    return found


def expand(pattern: str) -> list[str]:
    """'a-{08..10}' -> ['a-08', 'a-09', 'a-10']; several braces multiply. ValueError for a range that runs down."""
    match = _RANGE.search(pattern)
    if match is None:
        return [pattern]
    low, high = match.groups()
    if int(low) > int(high):
        raise ValueError(f"the range {match[0]} of {pattern} runs down; write the smaller number first")
    width = len(low) if low.startswith("0") or len(low) == len(high) else 0
    return [
        one
        for number in range(int(low), int(high) + 1)
        for one in expand(f"{pattern[: match.start()]}{number:0{width}d}{pattern[match.end() :]}")
    ]
