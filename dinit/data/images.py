"""Image decoding: an image file of any format to a square of 8-bit pixels."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

# Formats that Pillow only recognises (their pixels need a library it does not have) or hands to an outside
# program (Ghostscript): not images for our purpose.
_NOT_READ = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
_WITH_ALPHA = {"RGBA", "RGBa", "LA", "La", "PA"}


def readable_suffixes() -> set[str]:
    """Lower-case file suffixes, dot included, whose format Pillow can decode here."""
    known = Image.registered_extensions()
    return {suffix for suffix, kind in known.items() if kind in Image.OPEN and kind not in _NOT_READ}


def check_shape(size: int, channels: int) -> None:
    """ValueError unless size is a positive number of pixels and channels 1 or 3."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a whole number of pixels >= 1, got {size!r}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 3 (RGB) or 1 (grey), got {channels!r}")


def read_image(source: Path | BinaryIO, size: int, channels: int) -> NDArray[np.uint8]:
    """Reads one image of a file, or of what a file holds, and prepares it. Returns (channels, size, size).

    Raises OSError or another of Pillow's errors for a broken file, ValueError for pixels of no known range.
    """
    with Image.open(source) as file:
        file.load()
        return prepare(file, size, channels)


def prepare(image: Image.Image, size: int, channels: int) -> NDArray[np.uint8]:
    """Turns upright (EXIF), converts, crops and scales. Returns (channels, size, size).

    channels: 3 is RGB, 1 is grey. Transparent pixels show white. 16-bit grey is scaled to 8 bits.
    """
    flat = to_8_bit(ImageOps.exif_transpose(image)).convert("RGB" if channels == 3 else "L")
    pixels = np.array(square(flat, size))  # a copy: Pillow shares memory that torch may not write
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if channels == 3 else pixels[None])


def to_8_bit(image: Image.Image) -> Image.Image:
    """Picture with 8 bits a channel and no transparency. ValueError for float pixels."""
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no agreed range; save the image with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # "I;16" and its byte orders; "I" is how Pillow opens a 16-bit PGM
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"16-bit pixels must be in 0 .. 65535, got {values.min()} .. {values.max()}")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 / 255 = 257, to the nearest
    if image.mode in _WITH_ALPHA or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over)
    return image


def square(image: Image.Image, size: int) -> Image.Image:
    """Central square, scaled to size × size with antialiasing, as Dhariwal & Nichol 2021 prepare ImageNet.

    Halved with a box filter while at least twice too large, then scaled (bicubic) so that the short side
    fits, then cropped. Small images are enlarged.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
