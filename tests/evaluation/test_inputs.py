"""What is uneven between two sets is said, and nothing where all is well."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from made_features import featured, pictures
from PIL import Image
from torch import Tensor

from dinit.data.glyphs import Glyphs
from dinit.evaluation.image_features import ImageFeatures, spread_out
from dinit.evaluation.sanity_checks import blockiness, copies, grey_share, uneven


@pytest.fixture(scope="module")
def glyphs() -> Tensor:
    fonts = ("DejaVuSans", "DejaVuSerif")
    return Glyphs("test", size=64, count=120, characters="ABC", fonts=fonts).uint8_images()


def jpeg(images: Tensor, quality: int) -> Tensor:
    made = []
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=quality)
        made.append(torch.from_numpy(np.array(Image.open(stream))).permute(2, 0, 1))
    return torch.stack(made)


def with_images(images: Tensor) -> ImageFeatures:
    return ImageFeatures(len(images), images=images)


def said(samples: Tensor, reference: Tensor, any_size: bool = False) -> str:
    return "\n".join(uneven(with_images(samples), with_images(reference), any_size))


def test_two_halves_of_a_set_are_even(glyphs: Tensor) -> None:
    assert said(glyphs[::2], glyphs[1::2]) == ""
    assert said(pictures(90, side=8), pictures(80, side=8, seed=1)) == ""


@pytest.mark.parametrize("quality", [50, 75, 95])
def test_recompressed_sets_are_found_on_both_sides(glyphs: Tensor, quality: int) -> None:
    packed = jpeg(glyphs, quality)
    assert "the samples have the 8×8 grid of JPEG" in said(packed[::2], glyphs[1::2])
    assert "the reference have the 8×8 grid of JPEG" in said(glyphs[::2], packed[1::2])
    assert "JPEG" not in said(packed[::2], packed[1::2])


@pytest.mark.parametrize(("side", "found"), [(32, True), (31, False)])
def test_jpeg_is_looked_for_from_32_pixels_on_a_side(side: int, found: bool) -> None:
    size, fonts = 32, ("DejaVuSans", "DejaVuSerif")
    images = Glyphs("test", size=size, count=240, characters="ABC", fonts=fonts).uint8_images()
    packed = jpeg(images, 50)[:, :, :side, :side]
    assert ("8×8 grid of JPEG" in said(packed[::2], images[1::2, :, :side, :side])) is found


def test_noise_and_blur_are_not_taken_for_jpeg(glyphs: Tensor) -> None:
    def noisy(x: Tensor) -> Tensor:
        return (x + 6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)

    def blurred(x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, 3, 1, 1)

    changes: list[Callable[[Tensor], Tensor]] = [noisy, blurred, lambda x: blurred(noisy(x))]
    for change in changes:
        assert "JPEG" not in said(change(glyphs.float()).to(torch.uint8)[::2], glyphs[1::2])


def test_blockiness_is_that_of_the_grid(glyphs: Tensor) -> None:
    packed = jpeg(glyphs, 75)
    assert blockiness(packed) > 0.2
    assert blockiness(packed[:, :, 4:60, 4:60]) < -0.1  # the grid lies where blocks off it are looked for
    assert blockiness(torch.full((3, 3, 32, 32), 7, dtype=torch.uint8)) == 0


def test_greyscale_in_a_set_of_colour(glyphs: Tensor) -> None:
    mixed = glyphs[::2].clone()
    mixed[:15] = mixed[:15].float().mean(1, keepdim=True).to(torch.uint8)
    assert grey_share(mixed) == 0.25
    mixed[0, 2] += 1
    mixed[1, 0] += 1  # nearly grey is not grey, whichever channel differs
    assert grey_share(mixed) == 13 / 60
    mixed[:2] = mixed[2]
    assert "25.0% of the samples are greyscale and 0.0% of the reference" in said(mixed, glyphs[1::2])
    assert "samples have 1 channel(s), the reference 3" in said(glyphs[:, :1], glyphs)


def test_copies_are_counted(glyphs: Tensor) -> None:
    twice = torch.cat([glyphs[:50], glyphs[10:17]])
    assert copies(twice) == ["7 of 57 samples are byte for byte copies of another sample"]
    assert copies(glyphs) == []


def test_other_sizes_are_said_where_they_are_resized(glyphs: Tensor) -> None:
    small = glyphs[:, :, ::2, ::2].contiguous()
    assert "samples are 32×32, the reference 64×64" in said(small, glyphs, any_size=True)


def test_fewer_images_than_features() -> None:
    few, many = featured(np.random.default_rng(0).standard_normal((9, 9))), featured(np.zeros((50, 9)))
    assert any("9 samples for 9 features" in line for line in uneven(few, many))
    assert any("9 reference images for 9 features" in line for line in uneven(many, few))
    assert uneven(many, many) == []


def test_a_look_is_spread_over_the_set() -> None:
    images = torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1)
    assert spread_out(images, 5).flatten().tolist() == [0, 25, 50, 74, 99]
    assert len(spread_out(pictures(3), 10)) == 3
