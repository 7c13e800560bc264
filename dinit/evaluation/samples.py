"""Existing samples: a folder of pictures, or a pack of arrays (.npz, .npy) as papers exchange them."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dinit.checkpoints.runs import INDEX, is_checkpoint, is_run
from dinit.data.arrays import array_names, channels_first, choose_arrays, load_array, load_arrays, mapped
from dinit.data.class_names import find_name
from dinit.data.folder import image_files
from dinit.data.images import read_whole, seen_size
from dinit.data.labels import from_array, read_names
from dinit.data.scan import find_pictures
from dinit.data.sources import named
from dinit.data.value_range import warn_of_dark_bytes
from dinit.evaluation.image_features import ImageSource
from dinit.files import user_path

_LOSSY = (".jpg", ".jpeg", ".jpe", ".jfif")
_COMPANIONS = frozenset((".json", ".npz", ".npy", ".csv", ".txt", ".md", ".html", ".yaml", ".log"))
_MANIFEST = "manifest.json"
_RECORDED = ("sampler", "steps", "grid", "guidance")  # of the call in a manifest


@dataclass(frozen=True)
class Samples:
    """Samples read from files.

    Attributes:
        images: (N, C, H, W) uint8, read on demand.
        labels: (N,) int64, or None where they are not known.
        notes: remarks on the files, for the report.
        made_by: the call in the manifest, where there is one.
    """

    images: ImageSource
    labels: Tensor | None
    notes: tuple[str, ...] = ()
    made_by: Mapping[str, Any] = field(default_factory=dict)


class ArrayImages:
    """Images of an array (N, C, H, W) uint8, which may be memory-mapped. ValueError for another dtype."""

    def __init__(self, array: NDArray) -> None:
        if array.dtype != np.uint8:
            raise ValueError(
                f"packs of images hold uint8 in 0 .. 255, got {array.dtype}; scale them to 0 .. 255, round them "
                "and save them as uint8"
            )
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, rows: Any, /) -> Tensor:
        return torch.from_numpy(np.array(self.array[rows], order="C"))  # a copy: a mapped file is read-only


class FileImages:
    """Images in files of one size, read on demand as a data set reads them."""

    def __init__(self, files: Sequence[Path], channels: int) -> None:
        self.files, self.channels = list(files), channels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, rows: Any, /) -> Tensor:
        chosen = self.files[rows] if isinstance(rows, slice) else [self.files[row] for row in rows]
        with ThreadPoolExecutor(8) as pool:
            return torch.from_numpy(np.stack(list(pool.map(self._read, chosen))))

    def _read(self, file: Path) -> NDArray[np.uint8]:
        try:
            return read_whole(file, self.channels)
        except Exception as error:  # Pillow's plugins raise many kinds; the message names the file in any case
            raise ValueError(f"{file} cannot be read as an image ({error}); remove it or make it again") from error


def read_samples(path: str | Path, class_names: Sequence[str] = ()) -> Samples:
    """Samples of a folder with pictures anywhere in it, a .npz (arr_0, arr_1, or images, labels) or a .npy.

    Labels of a folder are those of its manifest, or of its sub-folders where all of these are class names.

    Args:
        path: the folder or file.
        class_names: names that sub-folders may have, in the order of the classes.

    Raises:
        ValueError: no images, images of several sizes, or files that cannot be read.
    """
    path = user_path(path)
    if path.is_dir():
        return _from_folder(path, class_names)
    return _from_pack(path, class_names)


def is_samples(path: str | Path) -> bool:
    """Whether a path is a pack or a folder of pictures, and not a pipeline or a run of training."""
    path = user_path(path)
    if path.is_dir():
        pipeline = (path / INDEX).exists() or is_run(path) or is_checkpoint(path)
        return not pipeline and bool(image_files(path))
    return path.suffix in (".npz", ".npy") and path.is_file()


def _from_pack(path: Path, class_names: Sequence[str]) -> Samples:
    names = array_names(path)
    if names is None:
        images, labels = load_arrays(path)
    else:  # further arrays are usual here: statistics, as ADM's references have them
        keys = choose_arrays(path, names)
        images, labels = (None if key is None else _array(path, key) for key in keys)
        assert images is not None
    with named(path):
        images = channels_first(images, None)
        found = None if labels is None else _labels_of_pack(np.asarray(labels), len(images), class_names)
        source = ArrayImages(images)
        warn_of_dark_bytes(images, path)
    return Samples(source, found)


def _array(path: Path, key: str) -> NDArray:
    found = mapped(path, key)
    return load_array(path, key) if found is None else found


def _labels_of_pack(labels: NDArray, count: int, class_names: Sequence[str]) -> Tensor:
    found = from_array(labels, count)[0]
    if isinstance(found, list):
        found = read_names(found, None, class_names or None)[0]
    return torch.from_numpy(found)


def _from_folder(path: Path, class_names: Sequence[str]) -> Samples:
    files, unused = find_pictures(path, _COMPANIONS)
    rest = unused.text(path)
    if not files:
        raise ValueError(
            f"{path} holds no pictures; give a folder of them, or a .npz with arr_0; {rest}".rstrip("; ")
        )
    if rest:
        warnings.warn(f"{path}: {rest}", stacklevel=3)
    content, call, listed = _manifest(path)
    named = [path / name for name in listed]
    if named and all(file.is_file() for file in named):
        files = named
    channels = _one_size(files)
    labels = call.get("labels")
    whole = isinstance(labels, list) and all(type(label) is int for label in labels)
    found, notes = None, []
    if isinstance(labels, list) and whole and len(labels) == len(files):
        found = torch.tensor(labels, dtype=torch.int64)
    elif class_names:
        found, remark = _labels_of_folders(path, files, class_names)
        notes += [remark] if remark else []
    if content.get("complete") is False:
        count = len(labels) if isinstance(labels, list) else 0
        notes.append(f"the set is not complete: {len(files)} of {count} images are there")
    elif isinstance(labels, list) and len(labels) != len(files):
        notes.append(f"{_MANIFEST} has {len(labels)} labels for {len(files)} pictures; they are not used")
    lossy = sum(file.suffix.lower() in _LOSSY for file in files)
    if lossy:
        notes.append(f"{lossy} of {len(files)} files are JPEG, stored with loss")
    recorded = {key: value for key, value in call.items() if key in _RECORDED}
    made_by = {"pipeline": content["pipeline"], **recorded} if "pipeline" in content else {}
    return Samples(FileImages(files, channels), found, tuple(notes), made_by)


def _manifest(folder: Path) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """A folder's manifest, the call in it, and the names of its pictures; empty where it is of another program."""
    try:
        content = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        content = {}
    content = content if isinstance(content, dict) else {}
    planned, picture = content.get("asked"), content.get("picture")
    # of a sheet's folder, or of an image set
    call = content.get("call") or (planned.get("call") if isinstance(planned, dict) else None)
    files = picture.get("files") if isinstance(picture, dict) else None
    names = [name for name in files if isinstance(name, str)] if isinstance(files, list) else []
    return content, call if isinstance(call, dict) else {}, names


def _one_size(files: Sequence[Path]) -> int:
    """Channels of the files, 1 or 3. ValueError unless all have one size. Reads headers only."""
    sizes: Counter[tuple[int, int]] = Counter()
    example: dict[tuple[int, int], Path] = {}
    grey = True
    for file in files:
        try:
            with Image.open(file) as picture:
                size, mode = seen_size(picture), picture.mode
        except Exception as error:
            raise ValueError(f"{file} cannot be read as an image ({error}); remove it or make it again") from error
        sizes[size] += 1
        example.setdefault(size, file)
        grey = grey and (mode in ("1", "L") or mode.startswith("I"))
    if len(sizes) > 1:
        shown = ", ".join(f"{n} of {w}×{h} (such as {example[w, h].name})" for (w, h), n in sizes.most_common(4))
        raise ValueError(f"the images are of several sizes: {shown}; a score needs them of one size")
    return 1 if grey else 3


def _labels_of_folders(
    root: Path, files: Sequence[Path], class_names: Sequence[str]
) -> tuple[Tensor | None, str | None]:
    """The labels; or a remark where sub-folders are the classes but not all of them, or not for all pictures."""
    tops = [file.relative_to(root).parts[0] for file in files]
    number = {top: find_name(top, class_names) for top in set(tops)}
    odd = [file.relative_to(root) for file, top in zip(files, tops, strict=True) if number[top] is None]
    if not odd:
        return torch.tensor([number[top] for top in tops], dtype=torch.int64), None
    folder = next((one.parts[0] for one in odd if len(one.parts) > 1), None)
    if folder is not None:
        return None, f"labels are not known: the sub-folder {folder!r} is none of the classes"
    if len(odd) == len(files):
        return None, None
    return (
        None,
        f"labels are not known: {len(odd)} of {len(files)} pictures, such as {odd[0]}, are in no sub-folder",
    )
