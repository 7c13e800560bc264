"""Glyphs: procedurally rendered letters and digits in colour, unlimited in number, with known factors."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinit.data.base import DATASETS, ImageData
from dinit.data.glyphs_raster import blend, coverage, font_file, texture
from dinit.data.order import hash_words, mix
from dinit.data.pixels import from_uint8

SPLITS = {"train": 50_000, "test": 10_000}  # number of images by default
SIZES = (32, 64)
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "STIXGeneral",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
    "cmss10",
    "cmtt10",
)
DIGITS, CAPITALS = "0123456789", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Small letters whose shape is not that of a capital at another scale, so that size and class stay independent.
SMALL = "abdefghijmnqrty"
CHARACTERS = {"digits": DIGITS, "capitals": CAPITALS, "digits+capitals": DIGITS + CAPITALS}
CHARACTERS["digits+letters"] = DIGITS + CAPITALS + SMALL

INK, _INK_CHROMA, _GROUND_CHROMA = 128, 110, 16  # bytes: the mean of red, green and blue, and the swing about it
_DARK, _SHADES = 16, 48  # the ground's mean: 16 .. 63 or 192 .. 239, always far from the ink's 128
_BLOCK = 4096
_GOLDEN = 0x9E3779B97F4A7C15
_VERSION = "glyphs 1"  # part of the fingerprint: raise it when the same factors give other pixels


@dataclass(frozen=True)
class ReadableFactors:
    """Factors that can be read from a glyph image: arrays of shape (N,), or the numbers of one image.

    Attributes:
        label: index into class_names.
        font: index into `Glyphs.fonts`.
        hue: of the ink, degrees 0 .. 359 in the plane across grey, whole numbers in the data; 0 is red.
        background_hue: of the ground, as hue.
        background: mean byte of the ground; 16 .. 63 (dark) or 192 .. 239 (light) in the data.
        rotation: degrees counter-clockwise; -15 .. 15 in halves in the data.
        scale: height of an 'H' as a share of the image's side; 52/128 .. 72/128 in the data.
    """

    label: NDArray[np.int64]
    font: NDArray[np.int64]
    hue: NDArray[Any]
    background_hue: NDArray[Any]
    background: NDArray[Any]
    rotation: NDArray[np.float64]
    scale: NDArray[np.float64]


@dataclass(frozen=True)
class Factors(ReadableFactors):
    """All factors that a glyph image is rendered from.

    Attributes:
        x: centre to the right of the image's centre, as a share of the side, -8/128 .. 8/128.
        y: centre below the image's centre, as x.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]

    def __getitem__(self, index: int) -> Factors:
        """The factors of one image of several."""
        return Factors(*(getattr(self, field.name)[index] for field in fields(self)))


@cache
def palette(mean: int, chroma: int, hue: int) -> NDArray[np.int32]:
    """(3,) red, green, blue in 0 .. 255 whose mean is `mean`, `chroma` bytes off grey towards `hue` degrees."""
    swings = [round(chroma * math.cos(math.radians(hue - 120 * k))) for k in range(3)]
    return np.array([mean + swing for swing in swings], dtype=np.int32)


@DATASETS.register("glyphs")
class Glyphs(ImageData):
    """Coloured letters and digits in ten fonts, RGB, rendered on the fly; every factor of each image is known.

    Image i is a function of (seed, split, i) in integer arithmetic: the same bytes on every machine that has the
    same outlines, which `fingerprint` hashes.

    Args:
        split: "train" or "test", which share no image.
        size: height = width, 32 or 64 pixels.
        count: number of images, 50,000 (train) and 10,000 (test) by default; image i does not depend on it.
        characters: "digits", "capitals", "digits+capitals", "digits+letters", or the characters in one string;
            one class each, and the label of image i is i modulo the number of classes.
        fonts: names of matplotlib's font files.
        seed: another one gives other images.

    Raises:
        ValueError: arguments that are not accepted.
    """

    channels = 3
    features = "glyphs-classifier"

    def __init__(
        self,
        split: str = "train",
        size: int = 32,
        count: int | None = None,
        characters: str = "digits+capitals",
        fonts: Sequence[str] = FONTS,
        seed: int = 0,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"glyphs have the splits {', '.join(SPLITS)}, got {split!r}")
        if size not in SIZES:
            raise ValueError(f"glyphs have a size of {' or '.join(map(str, SIZES))} pixels, got {size!r}")
        count = SPLITS[split] if count is None else count
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count must be a whole number of images >= 1, got {count!r}")
        self.class_names = _characters(characters)
        self.fonts = _fonts(fonts)
        self.split, self.image_size, self.seed = split, size, seed
        self.num_classes = len(self.class_names)
        self.labels = np.arange(count, dtype=np.int64) % self.num_classes
        self._key = hash_words(seed, list(SPLITS).index(split))
        self._blocks: dict[int, Factors] = {}

    def factors(self, index: int) -> Factors:
        """Factors of the image at `index`, as numbers.

        Raises:
            IndexError: an index past the end.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"index must be in 0 .. {len(self) - 1}, got {index}")
        block, row = divmod(index, _BLOCK)
        if block not in self._blocks:  # drawn together: drawn one by one, they take as long as rendering
            start = block * _BLOCK
            self._blocks[block] = self.factor_arrays(range(start, min(start + _BLOCK, len(self))))
        return self._blocks[block][row]

    def factor_arrays(self, indices: Sequence[int] | None = None) -> Factors:
        """Factors of the images at `indices`, all by default, as arrays (N,)."""
        chosen = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        keys = mix(np.uint64(self._key) + (chosen.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))
        words = mix(keys[:, None] + np.arange(1, 9, dtype=np.uint64) * np.uint64(_GOLDEN)) >> np.uint64(32)

        def draw(column: int, values: int) -> NDArray[np.int64]:
            """Uniform in 0 .. values - 1: 32 bits, multiplied and shifted."""
            return ((words[:, column] * np.uint64(values)) >> np.uint64(32)).astype(np.int64)

        shade = draw(3, 2 * _SHADES)
        return Factors(
            label=chosen % self.num_classes,
            font=draw(0, len(self.fonts)),
            hue=draw(1, 360),
            background_hue=draw(2, 360),
            background=np.where(shade < _SHADES, _DARK + shade, 255 - _DARK - (shade - _SHADES)),
            rotation=draw(4, 61) / 2 - 15.0,
            scale=(52 + draw(5, 21)) / 128,
            x=(draw(6, 17) - 8) / 128,
            y=(draw(7, 17) - 8) / 128,
        )

    def render(self, factors: Factors) -> NDArray[np.uint8]:
        """Image of any factors of one image, (3, size, size) uint8."""
        size = self.image_size
        glyph = texture(self.fonts[int(factors.font)], self.class_names[int(factors.label)], size)
        shift = (round(8 * size * float(factors.x)), round(8 * size * float(factors.y)))
        covered = coverage(glyph, size, size * float(factors.scale), float(factors.rotation), shift)
        ink = palette(INK, _INK_CHROMA, int(factors.hue))
        ground = palette(int(factors.background), _GROUND_CHROMA, int(factors.background_hue))
        return blend(covered, ink, ground)

    def image(self, index: int) -> Tensor:
        return from_uint8(torch.from_numpy(self.render(self.factors(index))))

    def uint8_images(self, indices: list[int] | None = None) -> Tensor:
        chosen = range(len(self)) if indices is None else indices
        made = self.factor_arrays(list(chosen))
        images = np.empty((len(chosen), 3, self.image_size, self.image_size), dtype=np.uint8)
        for k in range(len(chosen)):
            images[k] = self.render(made[k])
        return torch.from_numpy(images)

    def fingerprint(self) -> str:
        options = (_VERSION, self.split, self.image_size, len(self), self.seed, self.class_names, self.fonts)
        digest = hashlib.sha256(repr(options).encode())
        for font in self.fonts:
            for character in self.class_names:
                digest.update(texture(font, character, self.image_size).tobytes())
        return digest.hexdigest()[:32]


def _characters(given: str) -> tuple[str, ...]:
    if not isinstance(given, str) or not given:
        raise ValueError(
            f"characters must be {', '.join(CHARACTERS)} or the characters in one string, got {given!r}"
        )
    chosen = CHARACTERS.get(given, given)
    if len(set(chosen)) != len(chosen):
        twice = ", ".join(sorted({one for one in chosen if chosen.count(one) > 1}))
        raise ValueError(f"characters names {twice} twice in {given!r}; give each once, or {', '.join(CHARACTERS)}")
    return tuple(chosen)


def _fonts(given: Sequence[str]) -> tuple[str, ...]:
    if isinstance(given, str) or not given or len(set(given)) != len(given):
        raise ValueError(f"fonts must be a list of different names, such as {list(FONTS[:2])}, got {given!r}")
    for name in given:
        font_file(name)
    return tuple(given)
