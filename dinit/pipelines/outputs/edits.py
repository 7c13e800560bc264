"""Sheets of edits: the given images, as the method makes them again, as edited, and what has changed."""

from __future__ import annotations

from collections.abc import Iterator
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
from dinit.pipelines.outputs.sheets import Layout, draw_sheet, lay_out, to_tiles


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
    _, rows = edit_tiles(edited)
    return lay_out(rows, call.image.shape[-1], ", ".join(parts))


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
