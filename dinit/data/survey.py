"""Survey of a data set: counts, sizes, colour, orientation and broken files, for the choice of a recipe."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinit.data.base import DATASETS, ImageData, InMemory
from dinit.data.folder import ImageFolder, reason
from dinit.data.images import read_image, seen_size

_DECODED_PIXELS = 2e8  # for each core; of more, a sample is decoded: about 3 seconds of JPEG
_SAMPLE = 1000  # pictures that colour and orientation are measured on
_SIDE = 32  # of their thumbnails
_GREY = 12  # largest difference of the channels, of 255, in a grey picture: JPEG's rounding stays below
_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND", "GIF": b"\x3b"}  # what a complete file has near its end
_TAIL = 4096  # bytes in which the end is looked for: programs append data of their own

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Survey:
    """What a data set holds.

    Attributes:
        spec: name and options of the data set, without those that a recipe chooses.
        counts: readable pictures of each class.
        sides: (N, 2) width and height of the readable pictures, upright.
        channels: 1 where the pictures are grey, 3 for colour; of data sets of one shape, its channels.
        grey: fraction of the pictures without colour, in [0, 1].
        one_way: how much of the left-right asymmetry the pictures of a class share, see `shared_asymmetry`.
        unreadable: files that cannot be read, with reasons.
        shape: side of the pictures of a data set of one shape; None for a folder, whose pictures are scaled.
        seconds: to decode one picture on one core; 0 where it is not decoded.
        complete: whether every picture was decoded, and not a sample.
    """

    spec: Mapping[str, Any]
    counts: Mapping[str, int]
    sides: NDArray[np.int64]
    channels: int
    grey: float
    one_way: float
    unreadable: tuple[tuple[Path, str], ...] = ()
    shape: int | None = None
    seconds: float = 0.0
    complete: bool = True

    @property
    def images(self) -> int:
        """Readable pictures."""
        return sum(self.counts.values())

    @property
    def short_side(self) -> int:
        """Median of the pictures' shorter sides, in pixels."""
        return int(np.median(self.sides.min(1)))

    @property
    def aspect(self) -> float:
        """Median ratio of the longer to the shorter side."""
        return float(np.median(self.sides.max(1) / self.sides.min(1)))


def survey(spec: Mapping[str, Any], progress: Progress | None = None) -> Survey:
    """Look at a data set.

    Args:
        spec: name and options, as in a recipe; a folder needs no size.
        progress: called with what is done, how many of it, and of how many.

    Returns:
        The survey.

    Raises:
        ValueError: a data set that cannot be opened, or without readable pictures in one of its classes.
    """
    show = progress or (lambda what, done, total: None)
    if spec["name"] == "folder":
        return _of_folder(spec, show)
    data = DATASETS.create(spec)
    if len(data) == 0:
        raise ValueError(f"the data set {spec['name']!r} has no images")
    of_classes = np.bincount(data.labels, minlength=data.num_classes).tolist()
    counts = dict(zip(data.class_names, of_classes, strict=True)) if data.num_classes else {"": len(data)}
    sides = np.full((len(data), 2), data.image_size)
    start = time.thread_time()
    rows = _spread(len(data))
    thumbs, labels = _thumbnails(data, rows), np.asarray(data.labels)[rows]
    return Survey(
        spec=dict(spec),
        counts=counts,
        sides=sides,
        channels=data.channels,
        grey=_grey(thumbs),
        one_way=shared_asymmetry(thumbs, labels),
        shape=data.image_size,
        seconds=0.0 if isinstance(data, InMemory) else (time.thread_time() - start) / len(rows),
    )


def _of_folder(spec: Mapping[str, Any], show: Progress) -> Survey:
    kept = {
        key: value for key, value in spec.items() if key not in ("size", "channels", "horizontal_flip", "check")
    }
    data = ImageFolder(kept["path"], 1, check=False)
    cores = available_cores()
    with ThreadPoolExecutor(max(4, 2 * cores)) as pool:
        headers = []
        for row, found in enumerate(pool.map(_header, data.files), 1):
            headers.append(found)
            show("headers", row, len(data.files))
        fine = [row for row, found in enumerate(headers) if not isinstance(found, str)]
        pixels = sum(found[0] * found[1] for found in headers if not isinstance(found, str))
        complete = pixels <= _DECODED_PIXELS * cores
        sample = set(_spread(len(fine)).tolist())
        # Without its end a file may be truncated, or have a film behind the picture, as phones write it.
        wanted = [
            (row, place in sample)
            for place, row in enumerate(fine)
            if complete or place in sample or not headers[row][2]
        ]
        thumbs: dict[int, NDArray[np.uint8]] = {}
        problems = {row: found for row, found in enumerate(headers) if isinstance(found, str)}
        seconds = 0.0
        decoded = pool.map(lambda job: _decoded(data.files[job[0]]), wanted)
        for number, ((row, keep), (picture, took)) in enumerate(zip(wanted, decoded, strict=True), 1):
            seconds += took
            if isinstance(picture, str):
                problems[row] = picture
            elif keep:
                thumbs[row] = picture
            show("pictures", number, len(wanted))
    good = [row for row in range(len(data.files)) if row not in problems]
    counts = dict(
        zip(data.class_names, np.bincount(data.labels[good], minlength=data.num_classes).tolist(), strict=True)
    )
    lost = [name for name, count in counts.items() if not count]
    if lost:
        row = next(row for row in problems if data.class_names[int(data.labels[row])] == lost[0])
        raise ValueError(
            f"no picture in class {lost[0]!r} of {data.root} can be read, such as {data.files[row]} "
            f"({problems[row]}); replace them, or take the folder away"
        )
    pictures, labels = np.stack([thumbs[row] for row in thumbs]), data.labels[list(thumbs)]
    grey = _grey(pictures)
    return Survey(
        spec=kept,
        counts=counts,
        sides=np.array([headers[row][:2] for row in good]),
        channels=1 if grey >= 0.99 else 3,
        grey=grey,
        one_way=shared_asymmetry(pictures, labels),
        unreadable=tuple((data.files[row], problems[row]) for row in sorted(problems)),
        seconds=seconds / max(len(wanted), 1),
        complete=complete,
    )


def shared_asymmetry(pictures: NDArray[np.uint8], labels: NDArray[np.int64]) -> float:
    """Fraction of the left-right asymmetry of pictures that is common to all pictures of a class.

    Letters, and products that all face one way, share much of it; pictures of things that face either way share
    none, and only these may be mirrored. Where a is the antisymmetric part of a picture, this is the mean product
    <a_i, a_j> of two different pictures of a class over the mean of |a_i|², an unbiased estimate for any number
    of pictures. The larger of two values, for the brightness and for its squared deviation from the picture's mean,
    which does not depend on whether strokes are darker or lighter than the ground.

    Args:
        pictures: (N, C, H, W) uint8.
        labels: (N,) class of each.

    Returns:
        About 0 for pictures without a direction, up to 1 for identical ones.
    """
    grey = pictures.astype(np.float32).mean(1) / 127.5
    brightness = grey - grey.mean((1, 2), keepdims=True)
    contrast = brightness**2
    contrast -= contrast.mean((1, 2), keepdims=True)
    shares = []
    for maps in (brightness, contrast):
        odd = (maps - maps[:, :, ::-1]).reshape(len(maps), -1)
        shared = own = 0.0
        for label in np.unique(labels):
            some = odd[labels == label].astype(np.float64)
            count, squares = len(some), float((some**2).sum())
            if count > 1:
                shared += (float((some.sum(0) ** 2).sum()) - squares) / (count - 1)
                own += squares
        shares.append(shared / own if own else 0.0)
    return max(*shares, 0.0)


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spread(count: int) -> NDArray[np.int64]:
    """At most `_SAMPLE` of `count` indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, _SAMPLE)).round().astype(np.int64))


def _thumbnails(data: ImageData, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    return (
        data.uint8_images(rows.tolist()).numpy()
        if data.channels in (1, 3)
        else np.zeros((len(rows), 1, 1, 1), np.uint8)
    )


def _grey(pictures: NDArray[np.uint8]) -> float:
    """Fraction of pictures (N, C, H, W) whose channels are nearly equal in 99 % of the pixels."""
    difference = pictures.max(1).astype(np.int64) - pictures.min(1)
    return float((np.quantile(difference.reshape(len(pictures), -1), 0.99, axis=1) <= _GREY).mean())


def _header(file: Path) -> tuple[int, int, bool] | str:
    """Width and height by the header, and whether the file has its end; or why it cannot be read."""
    try:
        with Image.open(file) as picture:
            size, end = seen_size(picture), _ENDS.get(picture.format or "", b"")
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - _TAIL))
            return (*size, end in stream.read())
    except Exception as error:  # Pillow's plugins raise many kinds
        return reason(error)


def _decoded(file: Path) -> tuple[NDArray[np.uint8] | str, float]:
    """A thumbnail, or why there is none; and the seconds of CPU time that it took."""
    start = time.thread_time()
    try:
        picture: NDArray[np.uint8] | str = read_image(file, _SIDE, 3, file)
    except Exception as error:
        picture = reason(error)
    return picture, time.thread_time() - start
