"""Contact sheets, PIL images and animations of a denoised batch."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dinit.data.pixels import to_uint8

OutputType = Literal["pil", "np", "pt", "raw", "latent"]
OUTPUT_TYPES: tuple[str, ...] = get_args(OutputType)

_GAP, _LINE = 4, 14  # pixels between pictures; height of a line of text
_TITLE = _LINE + 3 * _GAP


def convert(images: Tensor, output_type: OutputType) -> Any:
    """(B, C, H, W) around [-1, 1] -> a list of PIL images, an array (B, H, W, C) or a tensor in [0, 1].

    Values outside are clipped, here and nowhere earlier; 'raw' gives the tensor back. ValueError for NaN or
    infinity.
    """
    if output_type == "pil":
        return to_pil(images)
    if output_type == "raw":
        return images
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images hold NaN or infinity; the model or the sampler that made them diverged")
    unit = ((images.float() + 1) / 2).clamp(0, 1)
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, C, H, W) around [-1, 1], C of 1 or 3 -> images of mode L or RGB. ValueError for other C, NaN or inf."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, got {images.shape[1]}; use output_type='pt'")
    pixels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]


def to_tiles(images: Tensor, scale: int) -> list[Image.Image]:
    """The pictures of a batch, every pixel enlarged to scale × scale."""
    pictures = to_pil(images)
    return [p.resize((p.width * scale, p.height * scale), Image.Resampling.NEAREST) for p in pictures]


def enlargement(side: int) -> int:
    """How much a picture of `side` pixels is enlarged on a contact sheet: to about 48, never reduced."""
    return max(1, round(48 / side))


@dataclass(frozen=True)
class Layout:
    """Layout of a contact sheet, in pixels. cells: upper left corners, one for each picture, in call order.

    texts: (x, y, text). scale: enlargement of the pictures.
    """

    size: tuple[int, int]
    cells: tuple[tuple[int, int], ...]
    texts: tuple[tuple[int, int, str], ...]
    scale: int


def lay_out(names: Sequence[str], side: int, title: str) -> Layout:
    """A class-ordered contact sheet for pictures of side × side pixels. names: the class of each, "" for none.

    Classes come in their order of appearance, one row a class (more where a class has more than 20 pictures),
    the name at its left. Where no class has two pictures they fill a square, names beneath.
    """
    scale = enlargement(side)
    tile = side * scale
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    if (len(members) == 1 and "" in members) or max(map(len, members.values())) == 1:
        return _square(names, tile, scale, title)
    columns = min(20, max(map(len, members.values())))
    left = _GAP + max(_text_width(name) for name in members) + _GAP
    cells, texts, y = [(0, 0)] * len(names), [(_GAP, _GAP, title)], _TITLE
    for name, indices in members.items():
        texts.append((_GAP, y + (tile - _LINE) // 2, name))
        for k, index in enumerate(indices):
            cells[index] = (left + k % columns * (tile + _GAP), y + k // columns * (tile + _GAP))
        y += -(-len(indices) // columns) * (tile + _GAP)
    width = max(left + columns * (tile + _GAP), _text_width(title) + 2 * _GAP)
    return Layout((width, y), tuple(cells), tuple(texts), scale)


def _square(names: Sequence[str], tile: int, scale: int, title: str) -> Layout:
    columns = math.ceil(math.sqrt(len(names)))
    caption = _LINE + 2 if any(names) else 0
    pitch_x = max(tile, *(_text_width(name) for name in names)) + _GAP
    pitch_y = tile + caption + _GAP
    cells = [(_GAP + k % columns * pitch_x, _TITLE + k // columns * pitch_y) for k in range(len(names))]
    texts = [(x, y + tile + 1, name) for (x, y), name in zip(cells, names, strict=True) if name]
    width = max(_GAP + columns * pitch_x, _text_width(title) + 2 * _GAP)
    height = _TITLE + -(-len(names) // columns) * pitch_y
    return Layout((width, height), tuple(cells), ((_GAP, _GAP, title), *texts), scale)


def draw_sheet(images: Tensor, layout: Layout) -> Image.Image:
    """The contact sheet of a batch, (B, C, H, W) around [-1, 1]; mode L for one channel, RGB for three."""
    tiles = to_tiles(images, layout.scale)
    sheet = Image.new(tiles[0].mode, layout.size, "white")
    pen = ImageDraw.Draw(sheet)
    for x, y, text in layout.texts:
        pen.text((x, y), text, fill="black", font=_font())
    for tile, cell in zip(tiles, layout.cells, strict=True):
        sheet.paste(tile, cell)
    return sheet


def animation_bytes(frames: Sequence[Image.Image], kind: str) -> bytes:
    """An animation that runs through the frames and rests on the last. kind: 'gif' or 'webp'."""
    buffer = io.BytesIO()
    durations = [120] * (len(frames) - 1) + [1500]  # milliseconds
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {"optimize": False}
    first, *rest = frames
    first.save(buffer, kind.upper(), save_all=True, append_images=rest, duration=durations, loop=0, **options)
    return buffer.getvalue()


@cache
def _font() -> Any:
    return ImageFont.load_default(12)


def _text_width(text: str) -> int:
    return math.ceil(_font().getlength(text))
