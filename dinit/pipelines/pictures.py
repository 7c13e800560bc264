"""Pictures that a call is given, in the forms that Python has them, as tensors in [-1, 1]."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dinit.arguments import shown
from dinit.contents import unfit
from dinit.data.images import prepare, seen_size, to_8_bit
from dinit.data.pixels import from_uint8
from dinit.files import user_path

PictureLike = Image.Image | str | Path | Tensor | np.ndarray
ImageLike = PictureLike | Sequence[PictureLike]

_FAR = 1.5  # decoded images leave [-1, 1] by less; bytes as floats by far more


def read_pictures(given: ImageLike, height: int, width: int, channels: int, what: str = "image") -> Tensor:
    """Pictures as a batch.

    Args:
        given: One picture or a sequence of them. Files and PIL images are read as training reads them: upright, in
            sRGB, over white, the central square scaled to the size. Tensors (C, H, W) or (B, C, H, W) hold bytes or
            floats in [-1, 1], arrays (H, W), (H, W, C) or (B, H, W, C) bytes or floats in [0, 1], as the output
            types 'raw' and 'np' have them; they must be of the size.
        height: Of each in pixels.
        width: As height; files and PIL images are read for squares alone.
        channels: 1 or 3, for files and PIL images.
        what: The keyword, for messages.

    Returns:
        (B, channels, height, width) float32, or float64 of a float64 tensor, around [-1, 1].

    Raises:
        ValueError: None of these; another size; values of another range.
        FileNotFoundError: There is no such file.
    """
    if isinstance(given, Sequence) and not isinstance(given, str):
        if not given:
            raise ValueError(f"{what} is an empty list: give one picture, or one for every label")
        return torch.cat([read_pictures(one, height, width, channels, what) for one in given])
    if isinstance(given, str | Path | Image.Image):
        picture = given if isinstance(given, Image.Image) else open_picture(given)
        if height != width:
            raise ValueError(f"{what} is a picture, and pictures are read as squares: give a tensor")
        return from_uint8(torch.from_numpy(prepare(picture, height, channels)))[None]
    pixels = _from_array(given, what) if isinstance(given, np.ndarray) else _from_tensor(given, what)
    wanted = (channels, height, width)
    if tuple(pixels.shape[1:]) != wanted:
        raise ValueError(
            f"{what} has pictures of shape {tuple(pixels.shape[1:])}, and they must be {wanted}: resize them, or "
            "give a file or a PIL image, which is scaled"
        )
    return pixels


def read_mask(given: Any, like: Any, size: int) -> Tensor:
    """A mask as truth values: true where it is white, where pixels are repainted.

    Args:
        given: One picture of the size of the images: a file, a PIL image, an array or a tensor of truth values,
            bytes or numbers in [0, 1]; white is 0.5 and more, or 128.
        like: The images that it belongs to, as they were given: a picture of another size than `size` is scaled
            and cropped with its mask.
        size: Height and width of the images in pixels.

    Returns:
        (1, 1, size, size) bool.

    Raises:
        ValueError: Another size; no mask; values outside [0, 1].
        FileNotFoundError: There is no such file.
    """
    if isinstance(given, str | Path | Image.Image):
        mask = to_8_bit(given if isinstance(given, Image.Image) else open_picture(given)).convert("L")
        (first,) = like[:1] if isinstance(like, Sequence) and not isinstance(like, str) else [like]
        image = open_picture(first) if isinstance(first, str | Path) else first
        allowed = {(size, size)} | ({seen_size(image)} if isinstance(image, Image.Image) else set())
        if mask.size not in allowed:
            sizes = " or ".join(f"{w} x {h}" for w, h in sorted(allowed))
            raise ValueError(
                f"mask is of {mask.width} x {mask.height} pixels, and it must be {sizes}, as the image"
            )
        return torch.from_numpy(prepare(mask, size, 1))[None] >= 128
    values = torch.from_numpy(given) if isinstance(given, np.ndarray) else given
    if not isinstance(values, Tensor):
        raise ValueError(f"mask must be a picture, a file, an array or a tensor, got {shown(given)}")
    if values.ndim > 2 and values.shape[-1] == 1 != values.shape[-2]:
        values = values[..., 0]  # of an array with its channel last
    if values.ndim not in (2, 3, 4) or values.shape[:-2].numel() != 1:
        raise ValueError(f"one mask is that of all images: give (H, W), got the shape {tuple(values.shape)}")
    values = values.reshape(1, 1, *values.shape[-2:])
    if tuple(values.shape[-2:]) != (size, size):
        raise ValueError(
            f"mask is of {values.shape[-1]} x {values.shape[-2]} pixels, and it must be {size} x {size}, as the "
            "image"
        )
    if values.dtype == torch.bool:
        return values
    if values.dtype == torch.uint8 and int(values.max()) > 1:
        return values >= 128
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise ValueError("mask has values outside [0, 1]: white, 1, is repainted, black, 0, is kept")
    return values >= 0.5


def open_picture(path: str | Path) -> Image.Image:
    """A picture of a file, decoded. FileNotFoundError where there is none, ValueError for another file."""
    file = user_path(path)
    if not file.is_file():
        raise FileNotFoundError(f"there is no picture {path}")
    try:
        with Image.open(file) as picture:
            picture.load()
            return picture
    except UnidentifiedImageError as error:
        raise ValueError(unfit(file, "a picture")) from error
    except OSError as error:
        raise ValueError(f"{path} is damaged: {error}; copy or download it again") from error


def _from_tensor(given: Any, what: str) -> Tensor:
    if not isinstance(given, Tensor) or given.ndim not in (3, 4):
        raise ValueError(
            f"{what} must be a picture, a file, an array (B, H, W, C), a tensor (B, C, H, W), or a list of these; "
            f"got {shown(given)}"
        )
    pixels = given.detach().cpu()
    pixels = pixels[None] if pixels.ndim == 3 else pixels
    if not len(pixels):
        raise ValueError(f"{what} has no pictures, its shape is {tuple(given.shape)}")
    if pixels.dtype == torch.uint8:
        return from_uint8(pixels)
    if not pixels.is_floating_point():
        raise ValueError(f"{what} must be of uint8 or a floating-point dtype, got {pixels.dtype}")
    pixels = pixels if pixels.dtype == torch.float64 else pixels.float()
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= -_FAR and high <= _FAR):
        raise ValueError(f"{what} is a tensor with values from {low:g} to {high:g}: they must be in [-1, 1]")
    if low >= 0 and high > low:
        warnings.warn(
            f"{what} is a tensor without a value below 0, and is taken as in [-1, 1]; 2 * x - 1 makes it of one in "
            "[0, 1]",
            UserWarning,
            stacklevel=2,
        )
    return pixels


def _from_array(given: np.ndarray, what: str) -> Tensor:
    if given.ndim not in (2, 3, 4) or not given.size:
        raise ValueError(f"{what} must be an array (H, W), (H, W, C) or (B, H, W, C), got the shape {given.shape}")
    pixels = given[..., None] if given.ndim == 2 else given
    pixels = torch.from_numpy(np.ascontiguousarray(pixels if pixels.ndim == 4 else pixels[None]))
    pixels = pixels.permute(0, 3, 1, 2).contiguous()
    if pixels.dtype == torch.uint8:
        return from_uint8(pixels)
    low, high = float(pixels.min()), float(pixels.max())
    if not pixels.is_floating_point() or not (low >= 0 and high <= 1):
        raise ValueError(
            f"{what} is an array of {given.dtype} with values from {low:g} to {high:g}: it must hold bytes, or "
            "floats in [0, 1]; a tensor has them in [-1, 1]"
        )
    return 2 * pixels.float() - 1
