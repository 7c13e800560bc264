"""Images in a numpy file, .npz or .npy."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinit.data.base import DATASETS, InMemory

_IMAGES, _LABELS = ("images", "arr_0"), ("labels", "arr_1")
_CHANNELS = (1, 2, 3, 4)
_UNREADABLE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
_WANTED = "wanted: a .npz with 'images', perhaps 'labels' (or arr_0, arr_1), or a .npy of images; unpickled"


@DATASETS.register("npz")
class NpzImages(InMemory):
    """Images in a .npz file ('images' or 'arr_0', and 'labels' or 'arr_1') or a .npy file (images alone).

    Images are (N, H, W, C), (N, C, H, W) or grey (N, H, W), square; uint8, or float within [-1, 1]. Without labels
    the set is unconditional (num_classes 0). Pickled contents are never read.

    Args:
        path: the file.
        layout: "nhwc" or "nchw"; needed only where the shape reads both ways.
        num_classes: number of classes; by default the largest label + 1.
        class_names: one for each class; by default the numbers.
        horizontal_flip: see `ImageData.sample`.

    Raises:
        ValueError: a file that cannot be read or holds something else, or labels that do not fit the classes.
    """

    def __init__(
        self,
        path: str | Path,
        layout: str | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        horizontal_flip: bool = False,
    ) -> None:
        images, labels = load_arrays(Path(path))
        images = channels_first(images, layout)
        check_values(images)
        if labels is None and (num_classes or class_names):
            raise ValueError(f"num_classes and class_names need labels, and {path} has none; {_WANTED}")
        if labels is None:
            names, labels = (), np.zeros(len(images), dtype=np.int64)
        else:
            labels = check_labels(labels, len(images))
            names = label_names(int(labels.max()) + 1, num_classes, class_names)
        super().__init__(images, labels, names, horizontal_flip)


def load_arrays(path: Path) -> tuple[NDArray, NDArray | None]:
    """Images and, where the file has them, labels. ValueError for a file that cannot be read as such."""
    try:
        # mapped, not read: a .npy may be larger than memory (numpy ignores this for .npz)
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded, None
        with loaded:
            images = next((loaded[key] for key in _IMAGES if key in loaded.files), None)
            labels = next((loaded[key] for key in _LABELS if key in loaded.files), None)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {_WANTED}") from None
    except _UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as numpy arrays ({error}); {_WANTED}") from error
    if images is None:
        raise ValueError(f"{path} has the arrays {', '.join(loaded.files) or '(none)'}; {_WANTED}")
    return images, labels


def channels_first(images: NDArray, layout: str | None) -> NDArray:
    """A view of shape (N, C, H, W), H = W. ValueError where the shape is none of the accepted, or is two."""
    if layout not in (None, "nhwc", "nchw"):
        raise ValueError(f"layout must be 'nhwc' or 'nchw', got {layout!r}")
    if images.ndim == 3:
        images, layout = images[:, None], "nchw"
    if images.ndim != 4 or 0 in images.shape:
        accepted = "(N, H, W, C), (N, C, H, W) or (N, H, W)"
        raise ValueError(f"images must have the shape {accepted}, none of them 0, got {images.shape}")
    last, first = images.shape[3] in _CHANNELS, images.shape[1] in _CHANNELS
    if layout is None and last and first:
        raise ValueError(f"shape {images.shape} reads both ways; give layout='nhwc' or layout='nchw'")
    if layout == "nhwc" or (layout is None and last):
        images = images.transpose(0, 3, 1, 2)
    if images.shape[1] not in _CHANNELS:
        raise ValueError(f"images must have 1 to 4 channels, got {images.shape[1]} of {images.shape}")
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"images must be square, got height {images.shape[2]} and width {images.shape[3]}")
    return images


def check_values(images: NDArray) -> None:
    """ValueError unless uint8, or float with every value finite and within [-1, 1]."""
    if images.dtype == np.uint8:
        return
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"images must be uint8 in 0 .. 255 or float in [-1, 1], got {images.dtype}")
    for start in range(0, len(images), 4096):
        piece = images[start : start + 4096]
        low, high = float(piece.min()), float(piece.max())
        if not (low >= -1.0 and high <= 1.0):  # NaN fails here as well
            raise ValueError(
                f"float images must be within [-1, 1], got values from {low:g} to {high:g}; "
                "rescale them, or save bytes (0 .. 255) as uint8"
            )


def check_labels(labels: NDArray, count: int) -> NDArray[np.int64]:
    """(count,) int64. ValueError for another shape, a dtype that is not integer, or a negative label."""
    if labels.shape != (count,):
        raise ValueError(f"labels must have the shape ({count},), one an image, got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers 0, 1, 2, …, got {labels.dtype}")
    if labels.min() < 0:
        raise ValueError(f"labels must be >= 0, got {labels.min()}")
    return labels.astype(np.int64)


def label_names(seen: int, num_classes: int | None, class_names: Sequence[str] | None) -> tuple[str, ...]:
    """Class names, by default the numbers; ValueError where they do not fit. seen: the largest label + 1."""
    total = len(class_names) if class_names is not None else num_classes if num_classes is not None else seen
    if num_classes is not None and num_classes != total:
        raise ValueError(f"num_classes is {num_classes}, but there are {total} class_names")
    if seen > total:
        raise ValueError(f"the largest label is {seen - 1}, out of range for {total} classes")
    return tuple(class_names) if class_names is not None else tuple(str(i) for i in range(total))
