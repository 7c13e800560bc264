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
_NARROWEST, _NAME = 320, 150  # pixels: of a title's lines at least, and of a class name at most


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


def enlargement(side: int, wanted: int = 48) -> int:
    """How much a picture of `side` pixels is enlarged on a contact sheet: to about `wanted`, never reduced."""
    return max(1, round(wanted / side))


@dataclass(frozen=True)
class Layout:
    """Layout of a contact sheet, in pixels. cells: upper left corners, one for each picture, in call order.

    texts: (x, y, text). scale: enlargement of the pictures.
    """

    size: tuple[int, int]
    cells: tuple[tuple[int, int], ...]
    texts: tuple[tuple[int, int, str], ...]
    scale: int


def lay_out(names: Sequence[str], side: int, title: str, wanted: int = 48) -> Layout:
    """A class-ordered contact sheet for pictures of side × side pixels. names: the class of each, "" for none.

    Classes come in their order of appearance, one row a class (more where a class has more than 20 pictures),
    the name at its left. Where no class has two pictures they fill a square, names beneath. Long names are cut,
    and the title is broken into lines at its commas. wanted: pixels to which pictures are enlarged, about.
    """
    scale = enlargement(side, wanted)
    tile = side * scale
    members: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        members.setdefault(name, []).append(index)
    if (len(members) == 1 and "" in members) or max(map(len, members.values())) == 1:
        return _square(names, tile, scale, title)
    columns = min(20, max(map(len, members.values())))
    shown = {name: _shortened(name, _NAME) for name in members}
    left = _GAP + max(map(_text_width, shown.values())) + _GAP
    head, y = _title(title, left + columns * (tile + _GAP))
    cells, texts = [(0, 0)] * len(names), list(head)
    for name, indices in members.items():
        texts.append((_GAP, y + (tile - _LINE) // 2, shown[name]))
        for k, index in enumerate(indices):
            cells[index] = (left + k % columns * (tile + _GAP), y + k // columns * (tile + _GAP))
        y += -(-len(indices) // columns) * (tile + _GAP)
    width = max(left + columns * (tile + _GAP), *(_text_width(line) + 2 * _GAP for _, _, line in head))
    return Layout((width, y), tuple(cells), tuple(texts), scale)


def _square(names: Sequence[str], tile: int, scale: int, title: str) -> Layout:
    columns = math.ceil(math.sqrt(len(names)))
    caption = _LINE + 2 if any(names) else 0
    shown = [_shortened(name, max(tile, _NAME)) for name in names]
    pitch_x = max(tile, *map(_text_width, shown)) + _GAP
    pitch_y = tile + caption + _GAP
    head, top = _title(title, _GAP + columns * pitch_x)
    cells = [(_GAP + k % columns * pitch_x, top + k // columns * pitch_y) for k in range(len(names))]
    texts = [(x, y + tile + 1, name) for (x, y), name in zip(cells, shown, strict=True) if name]
    width = max(_GAP + columns * pitch_x, *(_text_width(line) + 2 * _GAP for _, _, line in head))
    height = top + -(-len(names) // columns) * pitch_y
    return Layout((width, height), tuple(cells), (*head, *texts), scale)


def _title(text: str, width: int) -> tuple[list[tuple[int, int, str]], int]:
    """The lines of a title over a sheet so wide, as the texts of a layout; and where the pictures begin."""
    lines = [""]
    for part in text.split(", "):
        longer = f"{lines[-1]}, {part}" if lines[-1] else part
        if lines[-1] and _text_width(longer) > max(width, _NARROWEST) - 2 * _GAP:
            lines[-1] += ","
            lines.append(part)
        else:
            lines[-1] = longer
    return [(_GAP, _GAP + k * _LINE, line) for k, line in enumerate(lines)], len(lines) * _LINE + 3 * _GAP


def _shortened(text: str, width: int) -> str:
    """The text, cut where it is wider than `width` pixels."""
    if _text_width(text) <= width:
        return text
    while text and _text_width(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


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
