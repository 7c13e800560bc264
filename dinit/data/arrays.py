"""Images in a numpy file, .npz or .npy."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinit.contents import wrong_content
from dinit.data.base import DATASETS, InMemory
from dinit.data.labels import from_array, label_names, read_names, warn_of_empty_classes
from dinit.data.sources import named
from dinit.data.value_range import parse_range, range_of
from dinit.files import user_path
from dinit.specs import Names

# Names of arrays: those of dinit and of ADM first; of the others a file may have one.
_OURS = {"image": ("images", "arr_0"), "label": ("labels", "arr_1")}
_PARTS = ("train", "val", "valid", "test")
_THEIRS = {
    "image": ("image", "img", "imgs", "x", "data", "samples"),
    "label": ("label", "y", "target", "targets", "class", "classes", "cls", "class_id", "class_ids", "fine_labels",
              "coarse_labels"),
}  # fmt: skip
_CHANNELS = (1, 2, 3, 4)
_WANTED = (
    "wanted: a .npz with 'images', perhaps 'labels' (or arr_0, arr_1), or a .npy of images; unpickled. "
    "image='NAME' and label='NAME' take arrays of other names"
)


@DATASETS.register("npz")
class NpzImages(InMemory):
    """Images in a .npz file ('images' or 'arr_0', and 'labels' or 'arr_1') or a .npy file (images alone).

    Images are (N, H, W, C), (N, C, H, W) or grey (N, H, W), square; uint8 of 0 .. 255, or float of [-1, 1], or any
    numbers whose range is stated or shows in the whole set. Labels are whole numbers, one-hot rows or words.
    Without labels the set is unconditional (num_classes 0). Pickled contents are never read. Arrays that are not
    used, and classes without an image, are named in a warning.

    Args:
        path: the file.
        layout: "nhwc" or "nchw"; needed only where the shape reads both ways.
        num_classes: number of classes; by default the largest label + 1.
        class_names: one for each class; by default the numbers, or the words sorted.
        horizontal_flip: see `ImageData.sample`.
        image: name of the array of images, where it is not the only one of a usual name.
        label: name of the array of labels, likewise; of a .npy, the file of labels in the same folder. "none" is
            unconditional.
        value_range: values of black and white, "LOW..HIGH", such as "0..1".

    Raises:
        ValueError: a file that cannot be read or holds something else, or labels that do not fit the classes.
    """

    def __init__(
        self,
        path: str | Path,
        layout: str | None = None,
        num_classes: int | None = None,
        class_names: Names | None = None,
        horizontal_flip: bool = False,
        image: str | None = None,
        label: str | None = None,
        value_range: str | Sequence[float] | None = None,
    ) -> None:
        stated = parse_range(value_range)
        images, labels = load_arrays(user_path(path), image, label)
        with named(path):
            images = channels_first(images, layout)
            values = range_of(images, stated, path)
            if labels is None and (num_classes or class_names):
                raise ValueError(f"num_classes and class_names need labels, and {path} has none; {_WANTED}")
            if labels is None:
                names, numbers = (), np.zeros(len(images), dtype=np.int64)
            else:
                found, seen = from_array(labels, len(images))
                if isinstance(found, list):
                    numbers, names = read_names(found, num_classes, class_names)
                else:
                    numbers, names = found, label_names(seen, num_classes, class_names)
                warn_of_empty_classes(numbers, names, path, num_classes is not None)
        super().__init__(images, numbers, names, horizontal_flip, values)


def load_arrays(path: Path, image: str | None = None, label: str | None = None) -> tuple[NDArray, NDArray | None]:
    """Images and, where the file has them, labels; other arrays are named in a warning. A .npy is mapped, not read.

    image, label: as for `NpzImages`. ValueError for a file that cannot be read as such.
    """
    names = array_names(path)
    if names is None:
        if image is not None:
            raise ValueError(f"{path} is one array without a name; got image={image!r}, which is for a .npz")
        return load_array(path), _labels_file(path, label)
    of_images, of_labels = choose_arrays(path, names, image, label)
    left = _usual("label") if label == "none" else set()
    rest = [name for name in names if name not in (of_images, of_labels) and name.lower() not in left]
    if rest:
        advice = "" if of_labels or left else "; label='NAME' takes one of them as the labels"
        warnings.warn(f"{path}: arrays that are not used: {_listed(rest)}{advice}", stacklevel=3)
    return load_array(path, of_images), None if of_labels is None else load_array(path, of_labels)


def array_names(path: Path) -> list[str] | None:
    """Names of the arrays of a .npz; None of a .npy. ValueError for a file that cannot be read as either."""
    if path.is_file() and not zipfile.is_zipfile(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as loaded:
            return list(loaded.files)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; {_WANTED}") from None
    except Exception as error:  # zip's, zlib's, numpy's and Python's own, as the damage may be
        raise _unreadable(path, error) from error


def choose_arrays(
    path: Path, names: Sequence[str], image: str | None = None, label: str | None = None
) -> tuple[str, str | None]:
    """Names of the arrays of images and of labels, the latter None where there are none.

    path: of the file, for messages. names: of its arrays. image, label: as for `NpzImages`. ValueError where there
    are no images, where two arrays may be meant, or for stated names that the file does not have.
    """
    of_images = _chosen(path, names, "image", image)
    if of_images is None:
        raise ValueError(f"{path} has the arrays {_listed(names) or '(none)'}; {_WANTED}")
    if label == "none":
        return of_images, None
    part = next((part for part in _PARTS if part in of_images.lower().split("_")), "")
    return of_images, _chosen(path, names, "label", label, part)


def load_array(path: Path, name: str | None = None) -> NDArray:
    """One array of a .npz, or that of a .npy, mapped. ValueError where it cannot be read."""
    try:
        # mapped, not read: a .npy may be larger than memory (numpy ignores this for .npz)
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            found = loaded[name]
        if not isinstance(found, np.ndarray):
            raise ValueError("it has no numpy header")
        return found
    except Exception as error:  # zip's, zlib's, numpy's and Python's own, as the damage may be
        raise _unreadable(path, error, name) from error


def mapped(path: Path, key: str) -> NDArray | None:
    """Array of a .npz as a memory map; None where there is no such array or it is compressed.

    A pack of 50,000 images at 256×256 is 10 GB. ValueError for contents that do not match their checksum.
    """
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            name = f"{key}.npy"
            if name not in archive.namelist():
                return None
            entry = archive.getinfo(name)
            if entry.compress_type != zipfile.ZIP_STORED:
                return None
            with archive.open(entry) as stream:
                version = np.lib.format.read_magic(stream)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, fortran, dtype = read(stream)
                header = stream.tell()
                while stream.read(1 << 20):  # to the end, where zipfile compares the checksum
                    pass
        if dtype.hasobject or not np.prod(shape):
            return None
        with path.open("rb") as stream:
            stream.seek(
                entry.header_offset + 26
            )  # of a local header: the lengths of the name and of the extra field
            name_size, extra_size = np.frombuffer(stream.read(4), dtype="<u2")
        offset = entry.header_offset + 30 + int(name_size) + int(extra_size) + header
        if header + dtype.itemsize * int(np.prod(shape, dtype=object)) != entry.file_size:
            raise ValueError(f"{name} has {entry.file_size} bytes, which is not its shape {shape}")
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")
    except Exception as error:
        raise _unreadable(path, error) from error


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


def _chosen(path: Path, names: Sequence[str], option: str, stated: str | None, part: str = "") -> str | None:
    """Name of the array for an option, or None. part: of the images' name; where several fit, of that part."""
    if stated is not None:
        if stated not in names:
            raise ValueError(f"{path} has the arrays {_listed(names) or '(none)'}; got {option}={stated!r}")
        return stated
    ours = next((name for name in _OURS[option] if name in names), None)
    if ours is not None:
        return ours
    found = [name for name in names if name.lower() in _usual(option)]
    same = [name for name in found if part in name.lower().split("_")]
    found = same if len(same) == 1 else found
    if len(found) > 1:
        raise ValueError(
            f"{path} has {_listed(found)}, each of which may be the {option}s; {option}={found[0]!r} takes one"
        )
    return found[0] if found else None


def _usual(option: str) -> set[str]:
    """Names of arrays of images or of labels in lower case, of parts of a set too, such as x_train."""
    plain = {*_OURS[option], *_THEIRS[option]}
    return plain | {f"{a}_{b}" for part in _PARTS for one in plain for a, b in ((one, part), (part, one))}


def _labels_file(path: Path, label: str | None) -> NDArray | None:
    """Labels of a .npy of images: another .npy in its folder, where it is stated."""
    if label == "none":
        return None
    if label is not None:
        file = path.parent / label
        if file.suffix != ".npy" or not file.is_file():
            raise ValueError(f"label must be the name of a .npy in the folder of {path}, or 'none'; got {label!r}")
        return load_array(file)
    stem, words = path.stem.lower(), ("labels", "label", "y", "targets")
    near = {*words, *(stem.replace(one, word) for one in ("images", "image", "x") for word in words)} - {stem}
    found = [file.name for file in sorted(path.parent.glob("*.npy")) if file.stem.lower() in near]
    if found:
        warnings.warn(
            f"{path}: {_listed(found)} in the same folder is not used; label={found[0]!r} takes it as the labels, "
            "label='none' is unconditional",
            stacklevel=4,
        )
    return None


def _unreadable(path: Path, error: Exception, name: str | None = None) -> ValueError:
    if path.is_file() and (wrong := wrong_content(path)) is not None:
        return ValueError(wrong)
    what = f"the array {name!r} of {path}" if name else str(path)
    reason = str(error).split("\n", 1)[0][:300] or type(error).__name__
    return ValueError(f"{what} cannot be read as numpy arrays ({reason}); {_WANTED}")


def _listed(names: Collection[str]) -> str:
    some = list(names)[:12]
    return ", ".join(some) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
