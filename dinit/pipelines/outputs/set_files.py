"""Files of a large set of images: its manifest, its images, and the pack for evaluators.

samples/manifest.json    the call of the set, written before the first image; "complete" is whether all are there
samples/images/00012/00012345.png    lossless, a thousand a folder, each written whole or not at all
samples/samples_50000x32x32x3.npz    ADM's pack: arr_0 (N, H, W, C) uint8, arr_1 (N,) int64 where there are classes
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dinit.files import LOCK, remove_leftovers, user_path, whole_file, write_atomically
from dinit.pipelines.loading import read_json
from dinit.pipelines.outputs.manifest import FILE

SHARD = 1000  # images a folder
KEY = "dinit-image"  # of the text in each PNG: its index, label and seed, and which manifest is its own
_SHOWN = 8  # differences that an error spells out


class ImageSetError(ValueError):
    """A folder that this call must not write into, or a set that cannot be read."""


def image_path(folder: Path, index: int) -> Path:
    """The path of image `index` of a set."""
    return folder / "images" / f"{index // SHARD:05d}" / f"{index:08d}.png"


def present(folder: Path, count: int) -> set[int]:
    """Indices of the images that are there. Files get their names when they are whole, so these are."""
    found: set[int] = set()
    for start in range(0, count, SHARD):
        shard = image_path(folder, start).parent
        if shard.is_dir():
            names = [name for name in os.listdir(shard) if name.endswith(".png") and not name.startswith(".")]
            found.update(int(name.removesuffix(".png")) for name in names)
    return found


def png_bytes(picture: Image.Image, facts: Mapping[str, Any]) -> bytes:
    """The PNG file, with `facts` as its text. The same picture and facts are the same bytes."""
    info = PngInfo()
    info.add_text(KEY, json.dumps(dict(facts)))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def begin(folder: Path, spec: Mapping[str, Any], versions: Mapping[str, str], pipeline: str) -> list[str]:
    """Make the folder, or check that it contains this set. Returns notes for the user.

    ImageSetError, with the differences, for a folder of another set, or for a folder of other files. Only the
    process that owns the folder may call this: it removes incomplete files of killed runs.
    """
    before = check_folder(folder, spec, may_clean=True)
    if before is not None:
        older = [f"{k} {v} (now {versions.get(k)})" for k, v in before["versions"].items() if versions.get(k) != v]
        tail = "; images may differ from those in the last bit"
        return [f"the set was begun with {', '.join(older)}{tail}"] if older else []
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, spec, versions, {"complete": False, "pipeline": pipeline})
    return []


def check_folder(folder: Path, spec: Mapping[str, Any], may_clean: bool = False) -> dict[str, Any] | None:
    """The manifest of a folder that contains this set; None for one that is empty or not there.

    Args:
        folder: of the set.
        spec: what decides its images.
        may_clean: removes incomplete files of killed runs.

    Raises:
        ImageSetError: a folder of another set, with the differences, or of other files.
    """
    if (folder / FILE).exists():
        before = read_json(folder / FILE)
        if before.get("kind") != "set":
            raise ImageSetError(f"{folder} holds images of `dinit generate --out-dir`; give another folder")
        changed = list(differences(before.get("asked", {}), spec))
        if changed:
            shown = "\n".join(f"  {line}" for line in changed[:_SHOWN])
            raise ImageSetError(
                f"{folder} holds a set made by another call; nothing was written. Give another folder, or the same "
                f"call:\n{shown}"
            )
        if may_clean:
            _clean(folder)
        return before
    if may_clean:
        _clean(folder)
    if folder.exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise ImageSetError(f"{folder} is not empty and holds no set of dinit; nothing was written. Give another")
    return None


def write_manifest(
    folder: Path, spec: Mapping[str, Any], versions: Mapping[str, str], facts: Mapping[str, Any]
) -> None:
    """Write manifest.json: `spec` decides every byte of every image, `facts` are the rest."""
    content = {"format": 1, "kind": "set", **facts, "versions": dict(versions), "asked": dict(spec)}
    write_atomically(folder / FILE, json.dumps(content) + "\n")


def differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A line for every value that differs: 'call.steps: 20 there, 10 now'. Long lists by their first difference."""
    for key in {**before, **after}:
        old, new, name = before.get(key), after.get(key), f"{prefix}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{name}.")
        elif isinstance(old, list) and isinstance(new, list) and old != new and max(len(old), len(new)) > _SHOWN:
            if len(old) != len(new):
                yield f"{name}: {len(old)} there, {len(new)} now"
            else:
                unlike = [k for k, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
                k = unlike[0]
                yield f"{name}: {len(unlike)} differ, the first at {k}: {old[k]!r} there, {new[k]!r} now"
        elif old != new:
            yield f"{name}: {old!r} there, {new!r} now"


def pack(folder: Path, labels: Sequence[int | None]) -> Path:
    """The .npz of all images, as ADM's evaluator takes it, written whole; image by image, so of any size.

    Returns its path. ImageSetError for an image that is missing, damaged or of another size.
    """
    first = _pixels(image_path(folder, 0))
    shape = (len(labels), *first.shape)
    target = folder / f"samples_{'x'.join(map(str, shape))}.npz"
    if target.exists():  # whole, and of this very set
        return target
    with whole_file(target) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        with archive.open(_member("arr_0.npy"), "w", force_zip64=True) as member:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
            for index in range(len(labels)):
                pixels = _pixels(image_path(folder, index))
                if pixels.shape != first.shape:
                    raise ImageSetError(
                        f"{image_path(folder, index)} has the shape {pixels.shape}, not {first.shape}"
                    )
                member.write(pixels.tobytes())
        if None not in labels:
            with archive.open(_member("arr_1.npy"), "w") as member:
                np.lib.format.write_array(member, np.array(labels, dtype=np.int64))
    return target


def read_labels(path: Path) -> list[int | str]:
    """Labels, one an image: a .npy or .npz (arr_1, labels, or its only array) of whole numbers, or text lines.

    ValueError for a file of another kind. FileNotFoundError where there is none.
    """
    path = user_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of labels {path}")
    if path.suffix not in (".npy", ".npz"):
        return _lines_of(path)
    loaded = np.load(path, allow_pickle=False)
    if path.suffix == ".npz":
        names = [name for name in ("arr_1", "labels") if name in loaded.files] or loaded.files
        if len(names) != 1:
            raise ValueError(f"{path} holds {', '.join(loaded.files)}; labels are looked for in arr_1 or labels")
        loaded = loaded[names[0]]
    if loaded.ndim != 1 or loaded.dtype.kind not in "iu":
        raise ValueError(f"labels must be one row of whole numbers; {path} has {loaded.shape} of {loaded.dtype}")
    return loaded.tolist()


def _lines_of(path: Path) -> list[int | str]:
    """The lines of a text, without blank ones at its end. ValueError for a blank one before, or another file."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8 ({error}); labels are one a line, or a .npy or .npz"
        ) from error
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise ValueError(f"line {lines.index('') + 1} of {path} is blank; give one label a line")
    return list(lines)


def _member(name: str) -> zipfile.ZipInfo:
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))  # no clock: the same images are the same bytes


def _pixels(path: Path) -> np.ndarray:
    """(H, W, C) uint8 of one image."""
    try:
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
    except (OSError, SyntaxError) as error:  # Pillow's name for a broken PNG
        raise ImageSetError(f"{path} is missing or damaged ({error}); remove it and run the call again") from error
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _clean(folder: Path) -> None:
    for place in (folder, *folder.glob("images/*")):
        remove_leftovers(place)
