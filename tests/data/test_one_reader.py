"""One reader of pictures: the same file gives the same pixels to training and to evaluation."""

from __future__ import annotations

import re
import struct
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from dinit.data import images as reader
from dinit.data.folder import ImageFolder
from dinit.data.images import read_image, read_whole, square
from dinit.evaluation.samples import read_samples

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (12, 12, 3), dtype=np.uint8)
ORIENTATION = 0x0112


@pytest.fixture(autouse=True)
def forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_WARNED", set())


def scaled_whole(image: Image.Image, size: int) -> Image.Image:
    """The rule without its short cut: the whole picture is scaled, then cropped."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def test_only_the_visible_part_is_scaled_and_the_pixels_are_the_same() -> None:
    rng, elongated = np.random.default_rng(1), 0
    for _ in range(250):
        short, long = int(rng.integers(1, 40)), int(rng.integers(1, 700))
        shape = (short, long) if rng.integers(2) else (long, short)
        pixels = rng.integers(0, 256, (*shape, 3) if rng.integers(2) else shape, dtype=np.uint8)
        if rng.integers(2):
            pixels = (pixels > 127).astype(np.uint8) * 255  # over- and undershoot of the filter
        size, image = int(rng.integers(1, 50)), Image.fromarray(pixels)
        assert np.array_equal(np.asarray(square(image, size)), np.asarray(scaled_whole(image, size))), (shape, size)
        elongated += size > short and long > 8 * short
    assert elongated > 50


@pytest.mark.parametrize("shape", [(2, 20000), (20000, 2), (1, 30000), (30000, 1)])
def test_a_long_picture_takes_the_memory_of_its_file(tmp_path: Path, shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "long.png")
    largest: list[int] = []
    made = Image.Image.resize

    def resize(self: Image.Image, size: Any, *arguments: Any, **options: Any) -> Image.Image:
        largest.append(size[0] * size[1])
        return made(self, size, *arguments, **options)

    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image.Image, "resize", resize)
        pixels = read_image(tmp_path / "long.png", 256, 3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == (3, 256, 256)
    assert max(largest) <= 256 * 600  # the whole would be 256 × 7,680,000
    assert peak < 8 << 20
    centre = np.moveaxis(values, int(shape[1] == max(shape)), 0)[max(shape) // 2 - 8 : max(shape) // 2 + 8]
    assert pixels.min() >= int(centre.min()) - 30
    assert pixels.std() > 20


def rotated(image: Image.Image, orientation: int) -> Image.Image:
    """The picture as a camera stores it that writes this orientation."""
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def with_exif(orientation: int) -> tuple[Image.Image, dict[str, Any]]:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return rotated(Image.fromarray(NOISE), orientation), {"exif": exif}


def with_profile(profile: Any) -> tuple[Image.Image, dict[str, Any]]:
    return Image.fromarray(NOISE), {"icc_profile": ImageCms.ImageCmsProfile(profile).tobytes()}


SRGB_RED, WIDE_RED = (0.6484, 0.3309), (0.72, 0.28)


def colorants(red: tuple[float, float]) -> NDArray[np.float64]:
    """XYZ of the primaries, one a column, with the white of D50: those of sRGB as seen under D50, and a red."""

    def place(x: float, y: float) -> NDArray[np.float64]:
        return np.array([x / y, 1.0, (1 - x - y) / y])

    columns = np.stack([place(*red), place(0.3212, 0.5979), place(0.1559, 0.0660)], 1)
    return columns * np.linalg.solve(columns, np.array([0.9642, 1.0, 0.8249]))


def matrix_profile(gamma: float, red: tuple[float, float] = SRGB_RED, space: bytes = b"RGB ") -> bytes:
    """A minimal ICC profile: one tone curve, and for RGB the primaries of sRGB as seen under D50."""

    def curve() -> bytes:
        return b"curv" + struct.pack(">II", 0, 1) + struct.pack(">H", round(gamma * 256)) + b"\0\0"

    def xyz(values: NDArray[np.float64]) -> bytes:
        return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in values))

    columns = colorants(red)
    white = columns.sum(1)
    description = b"desc" + struct.pack(">II", 0, 5) + b"test\0" + bytes(79)
    tags = [(b"wtpt", xyz(white)), (b"desc", description)]
    if space == b"RGB ":
        tags += [(name, xyz(columns[:, k])) for k, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))]
        tags += [(name, curve()) for name in (b"rTRC", b"gTRC", b"bTRC")]
    else:
        tags += [(b"kTRC", curve())]
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags:
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02400000, b"mntr", space, b"XYZ ")
    header += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def srgb_of_gamma(values: NDArray[np.uint8], gamma: float) -> NDArray[np.float64]:
    return srgb_of_light((values / 255) ** gamma)


def srgb_of_light(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB bytes of linear light in 0 .. 1. IEC 61966-2-1."""
    light = light.clip(0)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


RIGHT: dict[str, Callable[[], tuple[Image.Image, dict[str, Any]]]] = {
    **{f"orientation {k}": (lambda k=k: with_exif(k)) for k in range(1, 9)},
    "no such orientation": lambda: (Image.fromarray(NOISE), with_exif(1)[1] | {"exif": odd_orientation()}),
    "sRGB profile": lambda: with_profile(ImageCms.createProfile("sRGB")),
    "16-bit grey of a colour": lambda: (Image.fromarray(NOISE[..., 0]).convert("RGB"), {}),
    "opaque": lambda: (Image.fromarray(NOISE).convert("RGBA"), {}),
}


def odd_orientation() -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    return exif


@pytest.mark.parametrize("name", RIGHT)
def test_training_and_evaluation_see_the_same_upright_pixels(tmp_path: Path, name: str) -> None:
    image, options = RIGHT[name]()
    expected = NOISE if image.mode != "RGB" or "colour" not in name else np.asarray(image)
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "0.png", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained = ImageFolder(tmp_path, 12).uint8_images()
        measured = read_samples(tmp_path).images[0:1]
    assert torch.equal(trained, torch.from_numpy(expected.transpose(2, 0, 1)[None].copy()))
    assert torch.equal(trained, measured)


def test_the_size_of_a_set_is_that_of_the_upright_pictures(tmp_path: Path) -> None:
    wide = Image.fromarray(NOISE[:8])
    wide.save(tmp_path / "0.png")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    for suffix in ("png", "jpg"):
        rotated(wide, 6).save(tmp_path / f"1.{suffix}", exif=exif)
    found = read_samples(tmp_path).images[[0, 2]]
    assert torch.equal(found[0], found[1])
    assert tuple(found.shape) == (2, 3, 8, 12)


def test_colours_of_a_profile_become_srgb(tmp_path: Path) -> None:
    image = Image.fromarray(NOISE)
    image.save(tmp_path / "gamma.png", icc_profile=matrix_profile(1.8))
    found = read_whole(tmp_path / "gamma.png", 3).transpose(1, 2, 0)
    assert np.abs(found - srgb_of_gamma(NOISE, 1.8)).max() < 1.5
    assert np.abs(found.astype(int) - NOISE).max() > 15
    image.save(tmp_path / "wide.png", icc_profile=matrix_profile(2.2, WIDE_RED))
    light = (NOISE / 255) ** 2.2 @ (np.linalg.inv(colorants(SRGB_RED)) @ colorants(WIDE_RED)).T
    seen = (light > 0).all(-1) & (light < 1).all(-1)  # the rest is outside sRGB
    found = read_whole(tmp_path / "wide.png", 3).transpose(1, 2, 0)
    assert seen.mean() > 0.5
    assert np.abs(found - srgb_of_light(light))[seen].max() < 1.5


def test_grey_palette_and_transparent_pictures_follow_their_profile_too(tmp_path: Path) -> None:
    grey = Image.fromarray(NOISE[..., 0])
    expected = srgb_of_gamma(NOISE[..., 0], 1.0)
    for number, profile in enumerate((matrix_profile(1.0, space=b"GRAY"), matrix_profile(1.0))):
        grey.save(tmp_path / f"{number}.png", icc_profile=profile)
        assert np.abs(read_whole(tmp_path / f"{number}.png", 1)[0] - expected).max() < 1.5
        assert np.abs(read_whole(tmp_path / f"{number}.png", 3) - expected).max() < 1.5
    deep = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.png", icc_profile=matrix_profile(1.0, space=b"GRAY"))
    assert np.array_equal(read_whole(tmp_path / "deep.png", 1), read_whole(tmp_path / "0.png", 1))
    four = grey.quantize(4)
    four.save(tmp_path / "p.png", icc_profile=matrix_profile(1.0))
    plain = np.asarray(four.convert("RGB"))
    assert np.abs(read_whole(tmp_path / "p.png", 3).transpose(1, 2, 0) - srgb_of_gamma(plain, 1.0)).max() < 1.5
    clear = Image.fromarray(NOISE).convert("RGBA")
    clear.putalpha(Image.fromarray(np.where(np.arange(12) < 6, 0, 255).astype(np.uint8)[None].repeat(12, 0)))
    clear.save(tmp_path / "a.png", icc_profile=matrix_profile(1.0))
    found = read_whole(tmp_path / "a.png", 3).transpose(1, 2, 0)
    assert (found[:, :6] == 255).all()
    assert np.abs(found[:, 6:] - srgb_of_gamma(NOISE[:, 6:], 1.0)).max() < 1.5


@pytest.mark.parametrize(
    ("name", "image", "options", "message"),
    [
        ("a.png", Image.fromarray(NOISE), {"icc_profile": b"no profile at all"}, "profile cannot be read"),
        (
            "b.png",
            Image.fromarray(NOISE),
            {"icc_profile": matrix_profile(1.0, space=b"GRAY")},
            "profile is of GRAY",
        ),
        ("c.tiff", Image.fromarray(NOISE).convert("CMYK"), {"icc_profile": matrix_profile(1.0)}, "pixels are CMYK"),
        ("d.png", Image.fromarray(NOISE), {"exif": b"Exif\0\0broken"}, "EXIF block cannot be read"),
        (
            "e.png",
            Image.fromarray(NOISE),
            {"save_all": True, "append_images": [Image.new("RGB", (12, 12))]},
            "frames",
        ),
        (
            "f.gif",
            Image.fromarray(NOISE),
            {"save_all": True, "append_images": [Image.new("RGB", (12, 12))]},
            "frames",
        ),
    ],
)
def test_what_cannot_be_followed_is_named_once(
    tmp_path: Path, name: str, image: Image.Image, options: dict[str, Any], message: str
) -> None:
    image.save(tmp_path / name, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = read_image(tmp_path / name, 12, 3)
        assert np.array_equal(first, read_whole(tmp_path / name, 3))
    assert len(caught) == 1
    assert re.search(rf"{name}: .*{message}", str(caught[0].message))
    if name.endswith("png"):
        assert np.array_equal(first.transpose(1, 2, 0), NOISE)
