"""Replay of a manifest: the picture is made again and compared."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dinit.files import user_path
from dinit.pipelines.call import Call
from dinit.pipelines.editing import EditCall
from dinit.pipelines.generate import Generated, Pipeline
from dinit.pipelines.outputs.edits import edit_pairs
from dinit.pipelines.outputs.files import sheet_layout
from dinit.pipelines.outputs.inputs import read_inputs
from dinit.pipelines.outputs.manifest import Manifest, provenance, read_manifest, versions
from dinit.pipelines.outputs.replay_set import mismatches, read_set, remake, set_folder
from dinit.pipelines.outputs.restoration import restoration_layout, restoration_tiles
from dinit.pipelines.outputs.sheets import draw_sheet, to_pil, to_tiles
from dinit.pipelines.plain import from_spec

Pairs = Iterable[tuple[str, Image.Image, Image.Image]]  # name, picture in the file, picture made again


@dataclass(frozen=True)
class Replay:
    """The result of a replay.

    same: every pixel is within the tolerance, and the pipeline is as the manifest records it. max_abs_diff: of
    pixels in 0 .. 255; 255 where sizes differ. pictures: how many were compared. notes: differences, in words.
    """

    same: bool
    max_abs_diff: int
    pictures: int
    notes: tuple[str, ...]


def replay(path: str | Path, pipe: Pipeline | str | None = None, tolerance: int = 0) -> Replay:
    """Makes the picture, or the folder of pictures, again and compares pixel by pixel.

    path: may be a set (`dinit generate --out FOLDER`), of which a few groups of images are made again, or one
    image in it. pipe: in place of the pipeline that the manifest names, or its present place. tolerance: the
    largest difference of pixels in 0 .. 255 that counts as the same. ValueError where there is no manifest or it is
    damaged.
    """
    path = user_path(path)
    folder = set_folder(path)
    if folder is not None:
        record = read_set(folder)
        pipe = _opened(pipe or record.pipeline, record.device, record.dtype)
        return _judge(remake(record, path, pipe), mismatches(record, pipe), record.versions, tolerance)
    manifest = read_manifest(path)
    pipe = _opened(pipe or manifest.pipeline, manifest.device, manifest.dtype)
    try:
        if manifest.picture.get("kind") == "edit":
            return _replay_edit(path, manifest, pipe, tolerance)
        call = Call.from_config(manifest.call, _inputs(path, manifest))
    except ValueError as error:
        raise ValueError(f"the manifest of {path} cannot be used: {error}") from error
    return compare(path, manifest, pipe, pipe.run(call, "raw"), tolerance)


def _replay_edit(path: Path, manifest: Manifest, pipe: Pipeline, tolerance: int) -> Replay:
    """The replay of a sheet of edits. ValueError where its record cannot be used."""
    edited = pipe.run_edit(EditCall.from_config(manifest.call, _inputs(path, manifest)), "raw")
    found = {**provenance(pipe), "nfe": edited.nfe}
    differing = [name for name in found if found[name] != getattr(manifest, name)]
    with Image.open(path) as sheet:
        return _judge(edit_pairs(sheet, manifest.picture, edited), differing, manifest.versions, tolerance)


def compare(path: Path, manifest: Manifest, pipe: Pipeline, generated: Generated, tolerance: int = 0) -> Replay:
    """Comparison of a picture with what was generated again, pixel by pixel.

    Args:
        path: PNG, or folder of PNGs.
        manifest: the record in it.
        pipe: what generated.
        generated: of the manifest's call, of output_type 'raw'.
        tolerance: the largest difference of pixels in 0 .. 255 that counts as the same.

    Raises:
        ValueError: the manifest does not describe the pictures.
    """
    found = {**provenance(pipe), "nfe": generated.nfe}
    differing = [name for name in found if found[name] != getattr(manifest, name)]
    return _judge(_pairs(path, manifest, pipe, generated), differing, manifest.versions, tolerance)


def max_abs_diff(before: Image.Image, after: Image.Image) -> int:
    """The largest difference of two pictures' pixels in 0 .. 255; 255 where size or mode differ."""
    if before.size != after.size or before.mode != after.mode:
        return 255
    first, second = np.asarray(before, dtype=np.int16), np.asarray(after, dtype=np.int16)
    return int(np.abs(first - second).max())


def _judge(pairs: Pairs, differing: list[str], made_with: Mapping[str, str], tolerance: int) -> Replay:
    """differing: what of the pipeline is not as the manifest records it. made_with: versions, for a note only."""
    notes = [f"{name} is not as the manifest records it" for name in differing]
    differences = []
    for name, before, after in pairs:
        differences.append(max_abs_diff(before, after))
        if differences[-1] > tolerance and len(notes) < 8:
            notes.append(f"{name} differs by up to {differences[-1]} of 255")
    now = versions()
    older = [f"{k} {v} (now {now.get(k)})" for k, v in made_with.items() if now.get(k) != v]
    if older:
        notes.append("made with " + ", ".join(older))
    worst = max(differences)
    return Replay(not differing and worst <= tolerance, worst, len(differences), tuple(notes))


def _opened(pipe: Pipeline | str, device: str, dtype_name: str) -> Pipeline:
    """The pipeline, without a progress bar; a name is opened by the manifest's settings. ValueError for no name."""
    if isinstance(pipe, str):
        if not pipe:
            raise ValueError("the manifest names no pipeline (it was never saved); give the pipeline yourself")
        dtype = getattr(torch, dtype_name, None)
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"the manifest's dtype {dtype_name!r} is none of torch's")
        try:
            torch.device(device)
        except RuntimeError as error:
            raise ValueError(f"the manifest's device {device!r} is none of torch's") from error
        here = "cpu" if device == "cuda" and not torch.cuda.is_available() else device
        pipe = Pipeline.from_pretrained(pipe, device=here, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _inputs(path: Path, manifest: Manifest) -> dict[str, Tensor]:
    """What the call was given, of the files next to the picture."""
    place = path.parent if manifest.picture.get("kind") == "single" and not path.is_dir() else path
    record = {"call": manifest.call, "truth": manifest.picture.get("truth")}
    return read_inputs(place.parent if place.suffix == ".json" else place, record)


def _pairs(
    path: Path, manifest: Manifest, pipe: Pipeline, generated: Generated
) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """(name, picture in the file, picture made again), one by one."""
    picture = manifest.picture
    try:
        if picture["kind"] in ("sheet", "restoration"):
            with Image.open(path) as sheet:
                yield from _sheet_pairs(path, sheet, manifest, pipe, generated)
        elif picture["kind"] == "single":
            with Image.open(path) as file:
                yield path.name, file, to_pil(generated.images)[picture["index"]]
        elif picture["kind"] == "folder":
            folder = path if path.is_dir() else path.parent
            for name, after in zip(picture["files"], to_pil(generated.images), strict=True):
                with Image.open(folder / Path(name).name) as file:
                    yield name, file, after
        else:
            raise ValueError(f"it is of the unknown kind {picture['kind']!r}")
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"the manifest of {path} does not describe its pictures: {error}") from error


def _sheet_pairs(
    path: Path, sheet: Image.Image, manifest: Manifest, pipe: Pipeline, generated: Generated
) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """The pictures on the sheet, then the whole sheet if this Pillow draws letters as that one did.

    Its title spells options by their names; where the same call is written down otherwise today, because a name has
    changed, an option was added or the title has other words, the letters are not compared.
    """
    images, layout = generated.images, None
    if manifest.picture["kind"] == "restoration":
        truth = from_spec(manifest.picture["truth"], _inputs(path, manifest))
        images, names = restoration_tiles(generated, truth)
        layout = restoration_layout(pipe, generated, names)
    tiles = to_tiles(images, manifest.picture["scale"])
    for index, ((x, y), tile) in enumerate(zip(manifest.picture["cells"], tiles, strict=True)):
        yield f"picture {index}", sheet.crop((x, y, x + tile.width, y + tile.height)), tile
    layout = layout or sheet_layout(pipe, generated.call, images.shape[-1], generated.nfe)
    same_words = [list(text) for text in layout.texts] == manifest.picture.get("texts")
    same_names = generated.call.to_config() == manifest.call
    if same_words and same_names and manifest.versions.get("pillow") == versions()["pillow"]:
        yield "the sheet with its labels", sheet, draw_sheet(images, layout)
