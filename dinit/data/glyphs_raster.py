"""Glyph rasteriser: small pictures of characters from font outlines, the same bytes on every machine.

Font rasterisers change their antialiasing and hinting from version to version, so none is used. Outlines are read
from the font file as numbers; a sample is inside where its winding number is not 0; the rest is integer arithmetic.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

REACH = 1.0  # a texture shows [-REACH, REACH] in both directions, in units of the font's height of 'H'
_SAMPLES = 4  # of a texel along each axis
_WINDOW = 16  # samples along each axis under a texel's mean: the pixel of an image, at the middle scale
_PER_STEP = 4  # samples to one of the 64 grey steps of a texel
_SEGMENTS = 8  # straight pieces a curve; on an 'O' they err by 0.15 of a sample
_SHIFT = 16  # positions in a texture are in 1/65,536 of a texel
_WEIGHT = 8  # bits of a bilinear weight along one axis
COVERAGE_BITS = 6 + 2 * _WEIGHT  # a covered pixel has 1 << COVERAGE_BITS


@contextmanager
def _quiet_head() -> Iterator[None]:
    """Silences fontTools, which warns at each of Computer Modern's files that its date is before 1970."""
    log = logging.getLogger("fontTools.ttLib.tables._h_e_a_d")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def font_file(name: str) -> Path:
    """Font file of matplotlib by its name, such as 'DejaVuSans'. ValueError for one that it does not ship."""
    import matplotlib  # here: it takes half a second

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    path = folder / f"{name}.ttf"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.ttf")))
        raise ValueError(f"matplotlib ships no font {name!r}; it has: {known}")
    return path


@lru_cache(maxsize=64)
def _font(name: str) -> tuple[Any, dict[int, str], float]:
    """fontTools' glyph set, its names by code point, and the height of 'H' in font units."""
    from fontTools.ttLib import TTFont

    with _quiet_head():
        font = TTFont(font_file(name), lazy=True)
        glyphs, names = font.getGlyphSet(), font.getBestCmap() or {}
        if ord("H") not in names:
            raise ValueError(f"the font {name!r} has no letters; take one that has, such as 'DejaVuSans'")
        edges = _edges(glyphs, names[ord("H")])
    return glyphs, names, float(edges[:, 1::2].max() - edges[:, 1::2].min())


def _edges(glyphs: Any, glyph: str) -> NDArray[np.float64]:
    """The outline as straight pieces from (x, y) to (x, y), (E, 4), in font units, y upwards."""
    from fontTools.pens.basePen import BasePen

    corners: list[tuple[float, float]] = []
    edges: list[tuple[float, float, float, float]] = []

    class Pen(BasePen):
        def _moveTo(self, pt: tuple[float, float]) -> None:
            corners[:] = [pt]

        def _lineTo(self, pt: tuple[float, float]) -> None:
            edges.append((*corners[-1], *pt))
            corners.append(pt)

        def _qCurveToOne(self, pt1: tuple[float, float], pt2: tuple[float, float]) -> None:
            start = corners[-1]
            for k in range(1, _SEGMENTS + 1):  # eighths: every product is exact in binary
                t, u = k / _SEGMENTS, 1 - k / _SEGMENTS
                self._lineTo(
                    (
                        u * u * start[0] + 2 * u * t * pt1[0] + t * t * pt2[0],
                        u * u * start[1] + 2 * u * t * pt1[1] + t * t * pt2[1],
                    )
                )

        def _closePath(self) -> None:
            self._lineTo(corners[0])

    glyphs[glyph].draw(Pen(glyphs))
    return np.array(edges, dtype=np.float64).reshape(-1, 4)


def inside(edges: NDArray[np.float64], x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether points (x, y) lie inside the outline, (len(y), len(x)). x: rising, evenly spaced; y: in any order.

    The rule of TrueType: a point is inside where the outline winds about it, whatever the direction.
    """
    x0, y0, x1, y1 = (edges[:, k] for k in range(4))
    row, edge = np.nonzero((y0 <= y[:, None]) != (y1 <= y[:, None]))  # which rows an edge crosses
    at = x0[edge] + (y[row] - y0[edge]) * (x1[edge] - x0[edge]) / (y1[edge] - y0[edge])
    turns = np.zeros((len(y), len(x) + 1), dtype=np.int8)
    np.add.at(turns, (row, np.searchsorted(x, at)), np.where(y1[edge] > y0[edge], 1, -1).astype(np.int8))
    return np.cumsum(turns, axis=1, dtype=np.int8)[:, :-1] != 0


@lru_cache(maxsize=4096)
def texture(font: str, character: str, size: int) -> NDArray[np.uint8]:
    """Texture of a character, centred by its bounding box: (4·size, 4·size) of 0 .. 64, the share covered.

    size: of the images it is for; 2·size texels to the height of 'H'. A texel is the mean over a pixel's width at
    the middle scale, so that an image samples it with no further smoothing. The border is 0. Read-only.
    ValueError where the font lacks the character, and for one larger than the texture.
    """
    glyphs, names, cap = _font(font)
    if ord(character) not in names:
        raise ValueError(f"the font {font!r} has no {character!r}; leave one of them out")
    edges = _edges(glyphs, names[ord(character)])
    if not len(edges):
        raise ValueError(f"{character!r} is blank in the font {font!r}; leave it out")
    corners = edges.reshape(-1, 2)
    low, high = corners.min(0), corners.max(0)
    side, texel = 4 * size, cap / (2 * size)  # texel: in font units
    wide, tall = (math.ceil(float(extent) / texel / 2) + 2 for extent in high - low)  # texels from the middle
    if max(wide, tall) >= side // 2:
        larger = f"{character!r} of the font {font!r} is over {2 * REACH:g} times as large as 'H'"
        raise ValueError(f"{larger}; leave it out")
    middle = (low + high) / 2
    x, y = (texel * (np.arange(-n * _SAMPLES, n * _SAMPLES) + 0.5) / _SAMPLES for n in (wide, tall))
    counts = _window_sums(inside(edges, middle[0] + x, middle[1] - y))
    found = np.zeros((side, side), dtype=np.uint8)
    found[side // 2 - tall : side // 2 + tall, side // 2 - wide : side // 2 + wide] = (
        counts + _PER_STEP // 2
    ) // _PER_STEP
    found.flags.writeable = False
    return found


def _window_sums(dots: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Number of samples inside, in the window about each texel."""
    pad = (_WINDOW - _SAMPLES) // 2
    total = np.pad(np.pad(dots, pad).cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32), ((1, 0), (1, 0)))
    across = total[:, _WINDOW::_SAMPLES] - total[:, :-_WINDOW:_SAMPLES]
    return across[_WINDOW::_SAMPLES] - across[:-_WINDOW:_SAMPLES]


def coverage(
    glyph: NDArray[np.uint8], size: int, cap_height: float, rotation: float, shift: tuple[int, int]
) -> NDArray[np.int32]:
    """Coverage of each pixel by the glyph, (size, size) of 0 .. 1 << COVERAGE_BITS.

    cap_height: of an 'H', in pixels. rotation: degrees, counter-clockwise. shift: right and down, in eighths of a
    pixel. Bilinear, in integers: only the two entries of the rotation are rounded, to 1/65,536.
    """
    side = 4 * size
    rate = 2 * size / cap_height / 8 * (1 << _SHIFT)  # 1/65,536 texels to an eighth of a pixel
    angle = math.radians(rotation)
    cos, sin = round(rate * math.cos(angle)), round(rate * math.sin(angle))
    line = np.arange(4 - 4 * size, 4 * size, 8, dtype=np.int32)  # from the image's middle to each pixel's
    x, y = line - shift[0], (line - shift[1])[:, None]
    middle, limit = ((side - 1) << _SHIFT) // 2, ((side - 1) << _SHIFT) - 1
    u = np.minimum(np.maximum((cos * x + middle) - sin * y, 0), limit)
    v = np.minimum(np.maximum(sin * x + (cos * y + middle), 0), limit)
    start = (v >> _SHIFT) * side + (u >> _SHIFT)
    one = (1 << _WEIGHT) - 1
    right, down = (u >> (_SHIFT - _WEIGHT)) & one, (v >> (_SHIFT - _WEIGHT)) & one
    # Four views, each starting at one of the neighbours: one gather each and no index arithmetic.
    flat = glyph.reshape(-1)
    a, b, c, d = (flat[k:].take(start).astype(np.int32) for k in (0, 1, side, side + 1))
    upper, lower = (a << _WEIGHT) + (b - a) * right, (c << _WEIGHT) + (d - c) * right
    return (upper << _WEIGHT) + (lower - upper) * down


def blend(covered: NDArray[np.int32], ink: NDArray[np.int32], ground: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Ink over ground, rounded to bytes. covered: (size, size) of `coverage`. ink, ground: (3,) of 0 .. 255.

    Returns (3, size, size) uint8.
    """
    step = (ink - ground)[:, None, None]
    mixed = covered * step  # at most 255 << 22 in all: it fits 32 bits
    mixed += ((ground << COVERAGE_BITS) + (1 << (COVERAGE_BITS - 1)))[:, None, None]
    return (mixed >> COVERAGE_BITS).astype(np.uint8)
