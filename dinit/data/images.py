"""Image decoding: the one reader of pictures, for training, encoding and evaluation alike."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dinit.data.colour_profiles import to_srgb

# Formats that Pillow only recognises (their pixels need a library it does not have) or hands to an outside
# program (Ghostscript): not images for our purpose.
_NOT_READ = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "WMF"}
_WITH_ALPHA = {"RGBA", "RGBa", "LA", "La", "PA"}
_FRAMES = {"GIF", "PNG", "WEBP", "AVIF", "TIFF"}  # a further frame of others is a preview or a layer
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ELONGATED = 8  # ratio of the sides from which on only the centre is scaled
_WARNED: set[tuple[str, Path]] = set()


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


def read_image(source: Path | BinaryIO, size: int, channels: int, name: Path | None = None) -> NDArray[np.uint8]:
    """Reads one image of a file, or of what a file holds, and prepares it. Returns (channels, size, size).

    name: of the picture, for warnings; by default the file. Raises OSError or another of Pillow's errors for a
    broken file, ValueError for pixels of no known range.
    """
    name = source if name is None and isinstance(source, Path) else name
    with _opened(source, name) as picture:
        return prepare(picture, size, channels, name)


def read_whole(file: Path, channels: int) -> NDArray[np.uint8]:
    """The whole picture of a file as `read_image` sees it, neither cropped nor scaled: (channels, H, W)."""
    with _opened(file, file) as picture:
        return _channels_first(flat(picture, channels, file), channels)


def seen_size(picture: Image.Image) -> tuple[int, int]:
    """Width and height after `upright`, of a picture whose header alone was read."""
    width, height = picture.size
    return (height, width) if width != height and _orientation(picture, None) >= 5 else (width, height)


def prepare(image: Image.Image, size: int, channels: int, name: Path | None = None) -> NDArray[np.uint8]:
    """`flat`, then the central square, scaled. Returns (channels, size, size)."""
    return _channels_first(square(flat(image, channels, name), size), channels)


def flat(image: Image.Image, channels: int, name: Path | None = None) -> Image.Image:
    """Picture as it is seen: upright by EXIF, in sRGB by its colour profile, over white where it is transparent.

    channels: 3 is RGB, 1 is grey (ITU-R 601 luma). 16-bit grey is scaled to 8 bits. What cannot be followed (a
    broken profile or EXIF block) is named in a warning, once for each folder. ValueError for float pixels.
    """
    _warn_of_frames(image, name)
    turn = _TURNS.get(_orientation(image, name))
    if turn is not None:
        image = image.transpose(turn)
    image, problem = to_srgb(to_8_bit(image))
    if problem:
        warn_of_picture("profile", name, f"{problem}; its pixels are taken as sRGB")
    return over_white(image).convert("RGB" if channels == 3 else "L")


def to_8_bit(image: Image.Image) -> Image.Image:
    """Picture with 8 bits a channel. ValueError for float pixels."""
    if image.mode == "F":
        raise ValueError("32-bit float pixels have no agreed range; save the image with 8 or 16 bits a channel")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image).astype(np.int64)  # "I;16" and its byte orders; "I" is how Pillow opens a 16-bit PGM
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"16-bit pixels must be in 0 .. 65535, got {values.min()} .. {values.max()}")
    made = Image.fromarray(((values + 128) // 257).astype(np.uint8))  # 65535 / 255 = 257, to the nearest
    if "icc_profile" in image.info:
        made.info["icc_profile"] = image.info["icc_profile"]
    return made


def over_white(image: Image.Image) -> Image.Image:
    """Picture without transparency: white shows where it was."""
    if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
        return image
    over = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", over.size, "white"), over)


def square(image: Image.Image, size: int) -> Image.Image:
    """Central square, scaled to size × size with antialiasing, as Dhariwal & Nichol 2021 prepare ImageNet.

    Halved with a box filter while at least twice too large, then scaled (bicubic) so that the short side
    fits, then cropped. Of a long picture that is enlarged only the visible part is scaled, to the same pixels:
    30000×2 needs no 3,840,000×256.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    if scale > 1 and max(image.size) > _ELONGATED * min(image.size):
        if width > height:
            columns = enlarged(np.asarray(image).swapaxes(0, 1), width, left, size).swapaxes(0, 1)
            return Image.fromarray(np.ascontiguousarray(columns)).resize((size, size), Image.Resampling.BICUBIC)
        margin, middle = 4 + size // 2, image.height // 2  # enlarged, so that `size` rows need fewer than that
        start = max(middle - margin, 0)
        some = image.crop((0, start, image.width, min(middle + margin, image.height)))
        rows = np.asarray(some.resize((size, some.height), Image.Resampling.BICUBIC))
        return Image.fromarray(enlarged(rows, height, top, size, start, image.height))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return image.crop((left, top, left + size, top + size))


def enlarged(
    lines: NDArray[np.uint8], total: int, first: int, count: int, start: int = 0, length: int | None = None
) -> NDArray[np.uint8]:
    """Lines first .. first + count - 1 of `lines` (n, …), bicubically enlarged to `total` lines as Pillow does it.

    With Pillow's arithmetic, 8-bit pixels and weights of 22 bits, so that the bytes are the same. start, length:
    where `lines` are of more, the position of the first and the number of all. Returns (count, …).
    """
    length = len(lines) if length is None else length
    centres = ((np.arange(first, first + count) + 0.5) * (length / total))[:, None]
    place = np.arange(max(int(centres[0, 0]) - 3, 0), min(int(centres[-1, 0]) + 4, length))
    begin, end = (np.trunc(centres + reach) for reach in (-1.5, 2.5))
    weights = np.where((place >= begin) & (place < end), _bicubic(place - centres + 0.5), 0.0)
    weights /= weights.sum(1, keepdims=True)
    fixed = np.trunc(weights * (1 << 22) + np.copysign(0.5, weights))  # whole numbers: every sum below is exact
    some = lines[place[0] - start : place[-1] + 1 - start].astype(np.float64)
    sums = fixed @ some.reshape(len(place), -1) + (1 << 21)
    return np.floor(sums / (1 << 22)).clip(0, 255).astype(np.uint8).reshape(count, *lines.shape[1:])


def warn_of_picture(kind: str, name: Path | None, text: str) -> None:
    """Warning about a picture, once for each kind and folder: a data set may hold a million of the same."""
    key = kind, Path() if name is None else name.parent
    if key not in _WARNED:
        _WARNED.add(key)
        warnings.warn(f"{'a picture' if name is None else name}: {text}", stacklevel=2)


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cubic convolution with a = -1/2. Keys 1981."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@contextmanager
def _opened(source: Path | BinaryIO, name: Path | None) -> Iterator[Image.Image]:
    """The decoded first frame."""
    with Image.open(source) as picture:
        _warn_of_frames(picture, name)  # before it is decoded: a GIF is rewound
        picture.load()
        yield picture


def _warn_of_frames(picture: Image.Image, name: Path | None) -> None:
    if picture.format in _FRAMES and getattr(picture, "is_animated", False):
        warn_of_picture("frames", name, "it has several frames; the first one is read, as of all such pictures")


def _orientation(image: Image.Image, name: Path | None) -> int:
    """EXIF orientation, 1 .. 8; 1 where there is none."""
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception as error:  # struct's, Pillow's and Python's own, as the damage may be
        reason = str(error) or type(error).__name__
        warn_of_picture("exif", name, f"its EXIF block cannot be read ({reason}); it is taken as upright")
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _channels_first(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    pixels = np.array(image)  # a copy: Pillow shares memory that torch may not write
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) if channels == 3 else pixels[None])
