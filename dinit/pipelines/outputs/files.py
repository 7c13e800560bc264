"""Image files: contact sheets, folders of PNGs, animations. Each is written completely or not at all."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from dinit.files import write_atomically
from dinit.pipelines.call import Call
from dinit.pipelines.generate import Generated, Pipeline
from dinit.pipelines.outputs.inputs import write_inputs
from dinit.pipelines.outputs.manifest import FILE, KEY, Manifest, describe
from dinit.pipelines.outputs.sheets import Layout, animation_bytes, draw_sheet, lay_out, to_pil
from dinit.targets import ANIMATIONS


def caption(pipe: Pipeline, call: Call, nfe: int | None = None) -> str:
    """A call in one line, with the values used: sampler, steps, NFE, grid, guidance, end, seed and dtype.

    Args:
        pipe: The pipeline that it is of.
        call: Of `Pipeline.prepare`.
        nfe: Network evaluations per image; None leaves them out.

    Returns:
        Parts between commas.
    """
    seeds = sorted({seed for seed, _ in call.keys})
    parts = [
        brief(call.sampler),
        f"{call.steps} steps",
        "" if nfe is None else f"{nfe} NFE",
        f"grid {brief(call.grid)}",
        " + ".join(map(brief, call.guidance)) or "no guidance",
        *_of_given(call),
        "" if call.end == "posterior-mean" else f"end {call.end}",
        f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds",
        str(pipe.backbone.dtype).removeprefix("torch."),
    ]
    return ", ".join(part for part in parts if part)


def _of_given(call: Call) -> list[str]:
    """What a call was given besides labels, for a caption."""
    given = call.given
    if given is None:
        return []
    parts = [] if not given.starts_from_image else [f"image with strength {given.strength:g}"]
    if given.mask is not None:
        parts.append("a mask")
    if given.measurement is not None:
        parts.append(f"{brief(given.measurement.a)} with noise {given.measurement.noise_std:g}")
    return parts


def sheet_layout(pipe: Pipeline, call: Call, side: int, nfe: int | None = None) -> Layout:
    """The contact sheet's layout: the names of the classes, and the call in one line as its title."""
    names = ["" if label is None else _class_name(pipe, label) for label in call.labels]
    return lay_out(names, side, caption(pipe, call, nfe))


def save_sheet(path: Path, pipe: Pipeline, generated: Generated) -> None:
    """A labelled contact sheet with its manifest. generated: of output_type 'raw'."""
    layout = sheet_layout(pipe, generated.call, generated.images.shape[-1], generated.nfe)
    texts = [list(text) for text in layout.texts]
    picture = {
        "kind": "sheet",
        "scale": layout.scale,
        "cells": [list(cell) for cell in layout.cells],
        "texts": texts,
    }
    manifest = describe(pipe, generated).with_picture(picture)
    write_file(path, png_bytes(draw_sheet(generated.images, layout), manifest))
    if generated.call.given is not None:
        write_inputs(path, generated.call.given.tensors())


def save_folder(folder: Path, pipe: Pipeline, generated: Generated) -> None:
    """One PNG an image, 000000.png and on, each with its manifest, and manifest.json for all, written last.

    A picture's own manifest records the batch it was made in and its place there: rounding on the last bit
    depends on the size of a batch, so the replay of one picture makes the whole batch again.
    """
    whole = describe(pipe, generated)
    files, pictures = [], to_pil(generated.images)
    inputs = {} if generated.call.given is None else generated.call.given.tensors()
    for batch in generated.call.batches():
        own = batch.to_config()
        inputs |= {} if batch.given is None else batch.given.tensors()
        for index in range(len(batch.labels)):
            files.append(f"{len(files):06d}.png")
            manifest = whole.with_picture({"kind": "single", "index": index}, call=own)
            write_file(folder / files[-1], png_bytes(pictures[len(files) - 1], manifest))
    content = whole.with_picture({"kind": "folder", "files": files}).to_json()
    if inputs:
        write_inputs(folder, inputs)
    write_file(folder / FILE, content.encode())


def save_animation(
    path: Path, pipe: Pipeline, call: Call, frames: Sequence[Tensor], nfe: int | None = None
) -> None:
    """The posterior mean of every step as an animated contact sheet, GIF or WebP by the suffix of path."""
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ANIMATIONS:
        raise ValueError(f"{path} must end in .gif or .webp")
    with torch.no_grad():
        decoded = [pipe.codec.decode(frame) for frame in frames]
    layout = sheet_layout(pipe, call, decoded[0].shape[-1], nfe)
    write_file(path, animation_bytes([draw_sheet(frame, layout) for frame in decoded], kind))


def png_bytes(picture: Image.Image, manifest: Manifest) -> bytes:
    """The PNG file with its manifest inside."""
    info = PngInfo()
    info.add_text(KEY, manifest.to_json())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def write_file(path: Path, content: bytes) -> None:
    """Write a file, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def _class_name(pipe: Pipeline, label: int) -> str:
    return str(label) if pipe.class_names is None else pipe.class_names[label]


def brief(part: Any) -> str:
    """A sampler, grid or guidance as "ddim(eta=0.5)": its name, all finite numbers, and other options that are not
    the usual ones."""
    name = getattr(part, "registry_name", type(part).__name__)
    if not dataclasses.is_dataclass(part):
        return name
    options = []
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if not field.init or not field.repr or isinstance(value, Tensor):
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            if math.isfinite(value):
                options.append(f"{field.name}={value:g}")
        elif value != field.default:
            text = " ".join(str(value).split())
            options.append(f"{field.name}={text if len(text) <= 40 else text[:39] + '…'}")
    return f"{name}({', '.join(options)})" if options else name
