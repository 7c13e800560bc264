"""Replay of a large set: one image of it, or a few groups from the first to the last."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dinit.pipelines.call import Call, to_spec
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.loading import read_json
from dinit.pipelines.outputs.manifest import FILE, provenance
from dinit.pipelines.outputs.set_files import KEY, image_path
from dinit.pipelines.outputs.sets import group_pictures, set_digest

_LARGEST_GROUP = 4096  # images that a set of fewer may be made up to
GROUPS = 4  # of a whole set: the first, the last, and some between


@dataclass(frozen=True)
class SetRecord:
    """The contents of a set's manifest. group: images that the network evaluated together."""

    folder: Path
    pipeline: str
    device: str
    dtype: str
    versions: Mapping[str, str]
    spec: Mapping[str, Any]
    call: Call
    group: int


def set_folder(path: Path) -> Path | None:
    """The folder of the set that `path` is, or is an image of; None where it is neither. ValueError for an image
    that was taken out of its set, and so has lost what made it.
    """
    if path.is_dir():
        manifest = path / FILE
        return path if manifest.is_file() and read_json(manifest).get("kind") == "set" else None
    if KEY not in _text(path):
        return None
    folder = path.resolve().parent.parent.parent
    if not folder.is_dir() or set_folder(folder) is None:
        raise ValueError(f"{path} is an image of a set, and {folder} holds no {FILE} of one; leave it in its set")
    return folder


def read_set(folder: Path) -> SetRecord:
    """ValueError for a damaged manifest."""
    manifest = read_json(folder / FILE)
    try:
        spec, versions = manifest["asked"], dict(manifest["versions"])
        config, group, seeds = spec["call"], spec["call"]["group"], spec["call"]["seeds"]
        if isinstance(seeds, Mapping):
            seeds = [(seeds["seed"], k) for k in range(seeds["images"])]
        call = Call.from_config({**config, "seeds": seeds, "batch_size": group})
        words = manifest["pipeline"], spec["device"], spec["dtype"]
        if not all(isinstance(word, str) for word in words):
            raise ValueError(f"pipeline, device and dtype must be texts, got {words!r}")
        if group > max(len(call.labels), _LARGEST_GROUP):
            raise ValueError(f"groups of {group} images are more than the set's {len(call.labels)}")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / FILE} is damaged: {error}") from error
    name, device, dtype = words
    return SetRecord(folder, name, device, dtype, versions, spec, call, group)


def mismatches(record: SetRecord, pipe: Pipeline) -> list[str]:
    """What of the pipeline is not as the set's manifest records it."""
    found = json.loads(json.dumps(to_spec(provenance(pipe))))
    return [name for name in found if found[name] != record.spec.get(name)]


def remake(record: SetRecord, path: Path, pipe: Pipeline) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """(name, picture in the file, picture made again) of an image at `path`, or of GROUPS groups of the folder.

    ValueError for an image that names no place in the set, or another set, or is missing or damaged.
    """
    count, group = len(record.call.labels), record.group
    if path.is_dir():
        starts = sorted({round(g) * group for g in np.linspace(0, (count - 1) // group, GROUPS)})
        wanted = [k for start in starts for k in range(start, min(start + group, count))]
    else:
        wanted = [_index(record, path)]
    for start in sorted({k // group * group for k in wanted}):
        rows = range(start, min(start + group, count))
        for k, after in zip(rows, group_pictures(pipe, record.call, rows, group), strict=True):
            if k in wanted:
                yield f"image {k}", _opened(image_path(record.folder, k) if path.is_dir() else path), after


def _index(record: SetRecord, path: Path) -> int:
    """The index of the image in its set, from the text in its file."""
    try:
        facts = json.loads(_text(path)[KEY])
        own, index = facts["set"], facts["index"]
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"the text in {path} is damaged: {error}") from error
    if own != set_digest(record.spec):
        raise ValueError(f"{path} is of another set than {record.folder / FILE}, by its text")
    if not isinstance(index, int) or not 0 <= index < len(record.call.labels):
        raise ValueError(f"{path} is image {index!r} of {len(record.call.labels)}, by its text")
    return index


def _opened(path: Path) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
    except (OSError, SyntaxError) as error:  # Pillow's name for a broken PNG
        raise ValueError(
            f"{path} is missing or damaged ({error}); remove what is left of it, and the call that made the set "
            "makes it again"
        ) from error
    return picture


def _text(path: Path) -> Mapping[Any, Any]:
    try:
        with Image.open(path) as picture:
            return dict(picture.info)
    except OSError:
        return {}  # the reader of manifests raises what is wrong with it
