"""Image folders: one sub-folder for each class."""

from __future__ import annotations

import hashlib
import itertools
import math
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dinit.data.base import DATASETS, ImageData
from dinit.data.class_names import normalized, sorted_names
from dinit.data.images import check_shape, read_image
from dinit.data.pixels import from_uint8
from dinit.data.scan import IN_NO_CLASS, find_pictures, is_added
from dinit.files import user_path

_LAYOUT = "wanted: one sub-folder a class with images in it, as in FOLDER/cat/1.jpg, FOLDER/dog/2.png"
_SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}
_HASHED_BYTES = 1 << 16
KEPT_BYTES = 512 << 20
"""Decoded pictures up to this size are kept in memory by `check`."""
_NAMED = 5


class CorruptImages(ValueError):
    """Images that cannot be read; `problems` is a list of (path, reason)."""

    def __init__(self, problems: list[tuple[Path, str]], advice: str = "remove or replace") -> None:
        self.problems = problems
        lines = "\n".join(f"  {path}: {reason}" for path, reason in problems)
        count = "1 image cannot" if len(problems) == 1 else f"{len(problems)} images cannot"
        super().__init__(f"{count} be read; {advice}:\n{lines}")


@DATASETS.register("folder")
class ImageFolder(ImageData):
    """Images in FOLDER/class-name/: any format Pillow reads, upright by EXIF, centre-cropped and scaled.

    Classes are the sub-folders' names in composed Unicode (NFC), in the order of their numbers where all names are
    whole numbers, otherwise sorted as text; images deeper inside belong to their top sub-folder, and links are
    followed. Hidden files and files that are not images by their suffix are not used, and named in a warning.

    Args:
        path: the folder.
        size: height = width in pixels, at least 1.
        channels: 3 (RGB) or 1 (grey).
        horizontal_flip: see `ImageData.sample`.
        check: decode every image once in the constructor, and keep them up to 512 MiB; "skip" leaves out, with a
            warning, what cannot be read, where True refuses it. False reads nothing before it is needed.

    Raises:
        ValueError: a folder of another layout, or a size or channels that are not accepted; with `check`,
            CorruptImages (a ValueError) with the paths of all broken files, or with "skip" of a class that has
            no other.
    """

    def __init__(
        self,
        path: str | Path,
        size: int,
        channels: int = 3,
        horizontal_flip: bool = False,
        check: bool | Literal["skip"] = True,
    ) -> None:
        check_shape(size, channels)
        if not isinstance(check, bool) and check != "skip":
            raise ValueError(f"check must be true, false or 'skip', got {check!r}")
        self.root = user_path(path)
        self.image_size, self.channels, self.horizontal_flip = size, channels, horizontal_flip
        folders = class_folders(self.root)
        self.class_names = tuple(normalized(folder.name) for folder in folders)
        self.num_classes = len(folders)
        found, unused = find_pictures(self.root)
        by_name: dict[str, list[Path]] = {folder.name: [] for folder in folders}
        for file in found:
            top = file.relative_to(self.root).parts[0]
            if file.parent == self.root:
                unused.count(IN_NO_CLASS, file)
            else:
                by_name[top].append(file)
        files, text = list(by_name.values()), unused.text(self.root)
        empty = [name for name, inside in by_name.items() if not inside]
        if empty:
            names = ", ".join(map(repr, empty[:20]))
            rest = f"; {text}" if text else ""
            raise ValueError(f"no images in class {names} of {self.root}; {_LAYOUT}{rest}")
        if text:
            warnings.warn(f"{self.root}: {text}", stacklevel=2)
        self._warn_of_nesting(folders, files)
        self.files = [file for found in files for file in found]
        self.labels = np.repeat(np.arange(len(files), dtype=np.int64), [len(found) for found in files])
        self._kept: NDArray[np.uint8] | None = None
        if check:
            self._decode(skip=check == "skip")

    def _warn_of_nesting(self, folders: list[Path], files: list[list[Path]]) -> None:
        """Warning where the class folders are probably splits, or one folder around the class folders."""
        splits = [folder for folder in folders if folder.name.lower() in _SPLITS]
        if len(splits) < len(folders) and len(folders) > 1:
            return
        chosen = next((place for place, one in enumerate(folders) if "train" in one.name.lower()), 0)
        folder, inside = folders[chosen], files[chosen]
        inner = sorted({file.relative_to(folder).parts[0] for file in inside if file.parent != folder})
        if len(inner) > 1 or (splits and (inner or len(folders) > 1)):
            found = ", ".join(repr(one.name) for one in folders)
            deeper = f"; path={folder} takes its sub-folders, such as {inner[0]!r}, as classes" if inner else ""
            warnings.warn(f"{self.root}: the classes are {found}, with all that is in them{deeper}", stacklevel=3)

    def image(self, index: int) -> Tensor:
        if self._kept is not None:
            return from_uint8(torch.from_numpy(self._kept[index]))
        file = self.files[index]
        try:
            pixels = read_image(file, self.image_size, self.channels, file)
        except Exception as error:
            raise CorruptImages([(file, reason(error))]) from error
        return from_uint8(torch.from_numpy(pixels))

    def verify(self) -> None:
        """Decode every image, on several threads.

        Raises:
            CorruptImages: one error with the paths of all broken files.
        """
        self._decode(skip=False)

    def _decode(self, skip: bool) -> None:
        """Decode every image and keep the pixels where they are few enough. skip: leave out the broken ones."""
        shape = (len(self.files), self.channels, self.image_size, self.image_size)
        kept = np.empty(shape, np.uint8) if math.prod(shape) <= KEPT_BYTES else None
        with ThreadPoolExecutor() as pool:
            reasons = list(pool.map(lambda row: self._problem(row, kept), range(len(self.files))))
        problems = [(file, why) for file, why in zip(self.files, reasons, strict=True) if why]
        if problems and not skip:
            raise CorruptImages(problems, "remove or replace, or leave out with the data's option check: skip")
        if problems:
            good = np.array([why is None for why in reasons])
            lost = set(self.labels.tolist()) - set(self.labels[good].tolist())
            if lost:
                raise CorruptImages(
                    [p for p, label in zip(problems, self.labels[~good], strict=True) if label in lost]
                )
            self.files = [file for file, why in zip(self.files, reasons, strict=True) if why is None]
            self.labels = self.labels[good]
            kept = None if kept is None else kept[good]
            named = ", ".join(f"{file.relative_to(self.root)} ({why})" for file, why in problems[:_NAMED])
            more = f" and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
            warnings.warn(f"{self.root}: left out, as they cannot be read: {named}{more}", stacklevel=4)
        self._kept = kept

    def _problem(self, row: int, kept: NDArray[np.uint8] | None) -> str | None:
        """Why a file cannot be read, or None, with its pixels in its row of `kept`."""
        file = self.files[row]
        try:
            pixels = read_image(file, self.image_size, self.channels, file)
        except Exception as error:  # Pillow's plugins raise many kinds; the message names the file in any case
            return reason(error)
        if kept is not None:
            kept[row] = pixels
        return None

    def fingerprint(self) -> str:
        """Hash of the options and of each file's name, size, and first and last 64 KiB.

        Not of all bytes: hashing those of a large set takes an hour.
        """
        options = f"{self.image_size} {self.channels} {self.horizontal_flip}"
        digest = hashlib.sha256(options.encode())
        for file in self.files:
            digest.update(f"\0{file.relative_to(self.root).as_posix()}\0".encode())
            hash_ends(digest, file)
        return digest.hexdigest()[:32]


def class_folders(root: Path) -> list[Path]:
    """Class folders in the order of their classes, see `sorted_names`.

    ValueError where `root` is not a folder, has no sub-folders, or two of one name.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise ValueError(f"{root} {what}; {_LAYOUT}")
    try:
        inside = [p for p in root.iterdir() if p.is_dir()]
    except OSError as error:
        raise ValueError(f"{root} cannot be listed ({error.strerror}); check its permissions") from error
    found = {p.name: p for p in inside if not p.name.startswith(".") and not is_added(p.name)}
    folders = [found[name] for name in sorted_names(found)]
    for one, other in itertools.pairwise(folders):
        if normalized(one.name) == normalized(other.name):
            raise ValueError(
                f"{root} has two sub-folders {normalized(one.name)!r}, whose names differ only in the form of "
                "Unicode (NFC and NFD); put their images into one"
            )
    if not folders:
        has_images = bool(image_files(root))
        found = "images but no sub-folders" if has_images else "no sub-folders"
        raise ValueError(f"{root} has {found}; {_LAYOUT}")
    return folders


def image_files(folder: Path) -> list[Path]:
    """Image files anywhere below `folder`, sorted by path, as `find_pictures` has them."""
    return find_pictures(folder)[0]


def hash_ends(digest: Any, file: Path) -> None:
    """Updates a hash with a file's length, and its first and last 64 KiB."""
    length = file.stat().st_size
    digest.update(f"{length}\0".encode())
    with file.open("rb") as stream:
        digest.update(stream.read(_HASHED_BYTES))
        stream.seek(max(0, length - _HASHED_BYTES))
        digest.update(stream.read())


def reason(error: Exception) -> str:
    """Why an image cannot be read, for an error message."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image in any format that Pillow reads"
    return str(error) or type(error).__name__
