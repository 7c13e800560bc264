"""Colour profiles (ICC): pixels of other colour spaces to sRGB, by LittleCMS through Pillow."""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

_GREY, _ALPHA = {"1", "L", "LA", "La"}, {"RGBA", "RGBa", "LA", "La", "PA"}
_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
_NEAR = 2  # of 255: the many published versions of sRGB differ by that much, and their pixels are left as they are


class Conversion(NamedTuple):
    """Mode that a transform to sRGB reads; or no transform, and why the profile cannot be used, if so."""

    mode: str
    transform: ImageCms.ImageCmsTransform | None
    problem: str | None


def to_srgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The picture in sRGB by its embedded profile, and why a profile could not be used, if so.

    Pictures without a profile, or with one that is sRGB to 2 of 255, are returned as they are. The intent is
    perceptual; transparency is kept.
    """
    profile = image.info.get("icc_profile")
    if not profile:
        return image, None
    mode, transform, problem = conversion(profile, "L" if image.mode in _GREY else image.mode)
    if transform is None:
        return image, problem
    has_alpha = image.mode in _ALPHA or "transparency" in image.info
    alpha = image.convert("RGBA").getchannel("A") if has_alpha else None
    found = transform.apply(image.convert(mode))
    if alpha is not None:
        found.putalpha(alpha)
    return found, None


@lru_cache(maxsize=64)
def conversion(profile: bytes, mode: str) -> Conversion:
    """Transform to sRGB of pictures of a mode; none where it would change nothing or the profile does not fit."""
    try:
        opened = ImageCms.core.profile_frombytes(profile)
        space = opened.xcolor_space.strip()
        target = "CMYK" if mode == "CMYK" else "L" if (mode, space) == ("L", "GRAY") else "RGB"
        if _MODES.get(space) != target:
            problem = f"its colour profile is of {space or 'no known'} colours, its pixels are {mode}"
            return Conversion(target, None, problem)
        exact = ImageCms.Flags.NOOPTIMIZE  # LittleCMS's tables are off by up to 10 of 255 in dark grey
        profiles = ImageCms.ImageCmsProfile(opened), ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(*profiles, target, "RGB", flags=exact)
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError) as error:
        return Conversion(mode, None, f"its colour profile cannot be read ({error})")
    return Conversion(target, None if _changes_nothing(transform, target, mode) else transform, None)


def _changes_nothing(transform: ImageCms.ImageCmsTransform, target: str, mode: str) -> bool:
    if target == "CMYK":
        return False
    steps = range(0, 256, 15)
    colours = [(v, v, v) for v in steps] if mode == "L" else list(product(steps, repeat=3))
    table = Image.fromarray(np.array([colours], np.uint8))
    found = np.asarray(transform.apply(table.convert(target)), dtype=np.int64)
    return bool(np.abs(found - np.asarray(table, dtype=np.int64)).max() <= _NEAR)
