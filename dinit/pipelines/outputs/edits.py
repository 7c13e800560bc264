"""Sheets of edits: the given images, as the method makes them again, as edited, and what has changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dinit.pipelines.editing import EditedImages
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.outputs.files import brief, png_bytes, write_file
from dinit.pipelines.outputs.inputs import write_inputs
from dinit.pipelines.outputs.manifest import describe
from dinit.pipelines.outputs.sheets import Layout, animation_bytes, draw_sheet, lay_out, to_tiles
from dinit.targets import ANIMATIONS


def edit_tiles(edited: EditedImages) -> tuple[Tensor, list[str]]:
    """The pictures of a sheet, (4 N, C, H, W), and what each is.

    Args:
        edited: Of output_type 'raw'.
    """
    given, again, images = (
        one.detach().float().cpu().clamp(-1, 1)
        for one in (edited.call.image, edited.reconstructions, edited.images)
    )
    names = ["given", "made again", "edited", "difference"]
    tiles = torch.cat([given, again, images, (images - given) / 2])
    return tiles, [name for name in names for _ in range(len(given))]


def edit_layout(pipe: Pipeline, edited: EditedImages) -> Layout:
    """The layout of the sheet, with the call in one line as its title."""
    _, rows = edit_tiles(edited)
    return lay_out(rows, edited.call.image.shape[-1], edit_caption(pipe, edited))


def edit_caption(pipe: Pipeline, edited: EditedImages) -> str:
    """An edit in one line: classes, method, steps, NFE, guidance and dtype."""
    call = edited.call
    names = pipe.class_names

    def word(labels: tuple[int, ...]) -> str:
        return " ".join(dict.fromkeys(str(label) if names is None else names[label] for label in labels))

    parts = [
        f"{word(call.source)} to {word(call.target)}",
        brief(call.method),
        f"{call.steps} steps",
        f"{edited.nfe} NFE",
        " + ".join(map(brief, call.guidance)) or "no guidance",
        str(pipe.backbone.dtype).removeprefix("torch."),
    ]
    return ", ".join(parts)


def save_edit(path: Path, pipe: Pipeline, edited: EditedImages) -> None:
    """A sheet of edits with its manifest; the given images are written next to it.

    Args:
        path: A PNG.
        pipe: What edited.
        edited: Of output_type 'raw'.
    """
    layout = edit_layout(pipe, edited)
    picture: dict[str, Any] = {
        "kind": "edit",
        "scale": layout.scale,
        "cells": [list(cell) for cell in layout.cells],
        "texts": [list(text) for text in layout.texts],
    }
    tiles, _ = edit_tiles(edited)
    tensors: dict[str, Tensor] = {}
    edited.call.to_config(tensors)
    write_file(path, png_bytes(draw_sheet(tiles, layout), describe(pipe, edited).with_picture(picture)))
    write_inputs(path, tensors)


def save_edit_animation(path: Path, pipe: Pipeline, edited: EditedImages, frames: Sequence[Tensor]) -> None:
    """The prediction of the edited images after every step as an animated sheet, next to the given ones.

    Args:
        path: A GIF or WebP.
        pipe: What edited.
        edited: Of output_type 'raw'.
        frames: (B, C, H, W) each, before the decoder.

    Raises:
        ValueError: Another suffix.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ANIMATIONS:
        raise ValueError(f"{path} must end in .gif or .webp")
    given = edited.call.image.float().cpu()
    names = [name for name in ("given", "edited") for _ in range(len(given))]
    layout = lay_out(names, given.shape[-1], edit_caption(pipe, edited))
    with torch.no_grad():
        shown = [torch.cat([given, pipe.codec.decode(frame).float().cpu()]) for frame in frames]
    write_file(path, animation_bytes([draw_sheet(one, layout) for one in shown], kind))


def edit_pairs(
    sheet: Image.Image, picture: dict[str, Any], edited: EditedImages
) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """(name, picture on the sheet, picture made again), one by one.

    Args:
        sheet: That `save_edit` drew.
        picture: Of its manifest.
        edited: Of the same call, of output_type 'raw'.
    """
    tiles, names = edit_tiles(edited)
    for name, (x, y), tile in zip(names, picture["cells"], to_tiles(tiles, picture["scale"]), strict=True):
        yield name, sheet.crop((x, y, x + tile.width, y + tile.height)), tile
