import hashlib
import math
import pickle
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from dinit.data import DATASETS
from dinit.data.glyphs import FONTS, Factors, Glyphs, palette
from dinit.data.glyphs_raster import COVERAGE_BITS, blend, coverage, font_file, inside, texture
from dinit.data.pixels import to_uint8
from dinit.training.batches import Share, batches

FULL = 1 << COVERAGE_BITS
LINE = np.arange(16) - 7.5


def rectangle(x0: float, y0: float, x1: float, y1: float, clockwise: bool = False) -> np.ndarray:
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)][:: -1 if clockwise else 1]
    return np.array([(*a, *b) for a, b in zip(corners, corners[1:] + corners[:1], strict=True)])


def test_a_point_is_inside_where_the_outline_winds_about_it() -> None:
    outer, hole = rectangle(-6, -4, 6, 4), rectangle(-2, -2, 2, 2, clockwise=True)
    solid = inside(outer, LINE, -LINE)
    assert solid.sum() == 12 * 8
    assert solid[4:12, 2:14].all()
    ring = inside(np.concatenate([outer, hole]), LINE, -LINE)
    assert ring.sum() == 12 * 8 - 4 * 4
    overlap = inside(np.concatenate([outer, rectangle(-2, -2, 2, 2)]), LINE, -LINE)
    assert (overlap == solid).all()  # wound about twice is inside as well
    high = inside(rectangle(-1, 3, 1, 6), LINE, -LINE)
    assert high[:8].sum() == high.sum() == 6  # y is upwards, rows go downwards


@pytest.mark.parametrize(("font", "character"), [("DejaVuSerif", "Q"), ("cmti10", "4"), ("STIXGeneral", "i")])
def test_a_texture_is_what_freetype_draws(font: str, character: str) -> None:
    from PIL import Image, ImageDraw, ImageFont

    face = ImageFont.truetype(font_file(font), 2000)
    ink = {}
    for shown in ("H", character):
        page = Image.new("L", (3000, 4000))
        ImageDraw.Draw(page).text((500, 500), shown, fill=255, font=face)
        ink[shown] = page.crop(page.getbbox())
    side = 2 * ink["H"].height  # a texture shows twice the height of an H
    page = Image.new("L", (side, side))
    page.paste(ink[character], ((side - ink[character].width) // 2, (side - ink[character].height) // 2))
    theirs = np.asarray(page.resize((128, 128), Image.Resampling.BOX)) / 255
    ours = texture(font, character, 32) / 64
    # Ours is smoothed over four texels: so smooth theirs.
    kernel = np.array([0.5, 1, 1, 1, 0.5]) / 4
    for axis in (0, 1):
        theirs = np.apply_along_axis(np.convolve, axis, theirs, kernel, "same")
    assert abs(ours.sum() / theirs.sum() - 1) < 0.01
    assert np.abs(ours - theirs).max() < 0.12
    assert np.abs(ours - theirs).mean() < 0.004


def moments(covered: np.ndarray) -> tuple[float, float, float, float]:
    """Area in pixels, centroid (x right, y down) from the middle, and the angle of the long axis, degrees."""
    weight = covered / FULL
    line = np.arange(len(covered)) - (len(covered) - 1) / 2
    area = weight.sum()
    x, y = (weight.sum(0) * line).sum() / area, (weight.sum(1) * line).sum() / area
    dx, dy = line[None] - x, -(line[:, None] - y)
    xx, yy, xy = ((weight * one).sum() for one in (dx * dx, dy * dy, dx * dy))
    return area, x, y, math.degrees(0.5 * math.atan2(2 * xy, xx - yy))


@pytest.mark.parametrize("size", [32, 64])
def test_a_glyph_is_scaled_moved_and_turned_as_asked(size: int) -> None:
    glyph = texture("DejaVuSans", "I", size)
    upright = size * 0.5
    area, x, y, axis = moments(coverage(glyph, size, upright, 0.0, (0, 0)))
    assert abs(x) < 0.02
    assert abs(y) < 0.02
    assert abs(abs(axis) - 90) < 0.1
    larger = moments(coverage(glyph, size, upright * 1.12, 0.0, (0, 0)))[0]
    assert abs(larger / area - 1.12**2) < 0.03
    _, x, y, _ = moments(coverage(glyph, size, upright, 0.0, (12, -20)))
    assert abs(x - 1.5) < 0.02
    assert abs(y + 2.5) < 0.02
    turned, x, y, axis = moments(coverage(glyph, size, upright, 10.0, (4, 4)))
    assert abs(turned / area - 1) < 0.01
    assert abs(x - 0.5) < 0.02
    assert abs(y - 0.5) < 0.02
    assert abs(axis % 180 - 100) < 0.2  # counter-clockwise


def test_an_h_is_as_high_as_its_scale() -> None:
    covered = coverage(texture("DejaVuSans", "H", 32), 32, 16.0, 0.0, (0, 0))
    column = covered[:, covered.sum(0).argmax()] / FULL
    assert abs(column.sum() - 16 * column.max()) < 0.35
    assert column[8:24].min() > 0.45 * column.max()
    assert column[:7].max() == column[25:].max() == 0


def test_blending_is_a_rounded_mean() -> None:
    covered = np.array([[0, FULL // 4], [FULL // 2, FULL]], dtype=np.int32)
    ink, ground = np.array([255, 0, 9], dtype=np.int32), np.array([0, 255, 240], dtype=np.int32)
    mixed = blend(covered, ink, ground)
    share = covered / FULL
    exact = ground[:, None, None] * (1 - share) + ink[:, None, None] * share
    assert (mixed == np.floor(exact + 0.5)).all()


def test_a_hue_is_an_angle_in_the_plane_across_grey() -> None:
    for hue in range(0, 360, 7):
        red, green, blue = palette(128, 110, hue).astype(float)
        assert abs((red + green + blue) / 3 - 128) < 0.7
        seen = math.degrees(math.atan2(math.sqrt(3) * (green - blue) / 2, red - (green + blue) / 2))
        assert abs((seen - hue + 180) % 360 - 180) < 0.6
    assert palette(128, 110, 0).argmax() == 0


def test_factors_are_uniform_and_independent() -> None:
    made = Glyphs("train", count=36_000).factor_arrays()
    counts = {"font": 10, "hue": 360, "background_hue": 360, "background": 96, "rotation": 61, "scale": 21}
    for name, values in {**counts, "x": 17, "y": 17}.items():
        found, times = np.unique(getattr(made, name), return_counts=True)
        assert len(found) == values
        expected = 36_000 / values
        chi2 = ((times - expected) ** 2 / expected).sum()
        assert abs(chi2 - (values - 1)) < 4 * math.sqrt(2 * (values - 1))
    assert (made.rotation.min(), made.rotation.max()) == (-15, 15)
    assert (made.scale.min() * 128, made.scale.max() * 128) == (52, 72)
    assert (made.x.min() * 128, made.y.max() * 128) == (-8, 8)
    table = np.stack([getattr(made, field.name) for field in fields(Factors)]).astype(float)
    off = np.abs(np.corrcoef(table) - np.eye(len(table)))
    assert off.max() < 4 / math.sqrt(36_000)
    assert (np.bincount(made.label) == 1000).all()


def test_an_image_is_a_function_of_seed_split_and_index_alone() -> None:
    long, short = Glyphs("test", count=6000), Glyphs("test", count=5000)
    wanted = [0, 1, 4095, 4096, 4999]
    images = long.uint8_images(wanted)
    assert torch.equal(images, short.uint8_images(wanted))
    again = pickle.loads(pickle.dumps(short))
    for index, image in zip(reversed(wanted), reversed(images), strict=True):  # by item, in another order
        assert torch.equal(to_uint8(again[index][0]), image)
        one, row = short.factors(index), long.factor_arrays([index])
        assert all(getattr(one, field.name) == getattr(row, field.name)[0] for field in fields(Factors))
    for other in (Glyphs("train"), Glyphs("test", seed=1)):
        assert not any((other.uint8_images(wanted) == images).flatten(1).all(1))


def test_train_and_test_share_no_image() -> None:
    def rows(split: str) -> set[tuple]:
        made = Glyphs(split).factor_arrays()
        return set(zip(*(getattr(made, field.name).tolist() for field in fields(Factors)), strict=True))

    assert not rows("train") & rows("test")


@pytest.mark.parametrize(
    ("size", "wanted"),
    [(32, "022b61a89e2739d192faa0d2c15f04f5"), (64, "e0d1bbbc9a56b6997c7ebe90e7934a08")],
)
def test_the_pixels_are_the_same_everywhere(size: int, wanted: str) -> None:
    images = Glyphs("test", size=size).uint8_images(list(range(0, 400, 11)))
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest()[:32] == wanted


def test_the_fingerprint_knows_the_outlines_and_the_options() -> None:
    few = {"characters": "AB", "fonts": ["DejaVuSans", "cmr10"], "count": 10}
    plain = Glyphs("test", **few).fingerprint()
    assert plain == "26c09a7bc738b58ff78e173eaaafe6fd"
    changes = [{"seed": 1}, {"count": 11}, {"characters": "BA"}, {"fonts": ["cmr10", "DejaVuSans"]}, {"size": 64}]
    others = [Glyphs("test", **{**few, **change}).fingerprint() for change in changes]
    assert len({plain, Glyphs("train", **few).fingerprint(), *others}) == 2 + len(changes)


def test_the_same_factors_in_another_place_are_the_same_picture_moved() -> None:
    data = Glyphs("test", characters="R")
    here = replace(data.factors(3), x=np.float64(0), y=np.float64(0))
    there = replace(here, x=np.float64(4 / 128), y=np.float64(-8 / 128))  # 1 pixel right, 2 up
    moved = np.roll(data.render(here), (-2, 1), axis=(1, 2))
    assert (moved == data.render(there)).all()


def test_the_largest_and_smallest_characters_fit_in_every_font() -> None:
    for font in FONTS:
        for character in "WMQgj01":  # the widest, the highest, the narrowest
            shown = texture(font, character, 32)
            assert shown.max() > 20
            assert not shown[[0, -1]].any()
            assert not shown[:, [0, -1]].any()


def test_workers_and_ranks_read_the_run_that_one_process_reads() -> None:
    data = Glyphs("train", count=30_000, characters="digits", fonts=["DejaVuSans"])  # too large to be held
    whole = [images for images, _ in batches(data, 5, Share(8), 3, 4, workers=0)]
    ranks = [batches(data, 5, Share(8, processes=2, rank=rank), 3, 4, workers=1) for rank in (0, 1)]
    for images, first, second in zip(whole, *ranks, strict=True):
        assert torch.equal(images, torch.cat([first[0], second[0]]))


def test_what_is_not_accepted_is_refused() -> None:
    for options, message in [
        ({"split": "valid"}, "train, test, got 'valid'"),
        ({"size": 48}, "32 or 64 pixels, got 48"),
        ({"count": 0}, "count must be .* >= 1, got 0"),
        ({"characters": "AAB"}, "names A twice"),
        ({"characters": ""}, "characters must be digits"),
        ({"fonts": ["Arial"]}, "no font 'Arial'; it has: DejaVuSans"),
        ({"fonts": "cmr10"}, "fonts must be a list"),
    ]:
        with pytest.raises(ValueError, match=message):
            DATASETS.create("glyphs", **options)
    with pytest.raises(IndexError, match=r"0 \.\. 9"):
        Glyphs(count=10)[10]
    with pytest.raises(IndexError, match=r"0 \.\. 9"):
        Glyphs(count=10).factors(-1)
    with pytest.raises(ValueError, match="'STIXSizOneSymReg' has no letters"):
        Glyphs(count=1, characters="A", fonts=["STIXSizOneSymReg"])[0]
    with pytest.raises(ValueError, match=r"no 'é'; leave one"):
        Glyphs(count=1, characters="é", fonts=["cmr10"])[0]
    with pytest.raises(ValueError, match="blank"):
        Glyphs(count=1, characters=" ", fonts=["DejaVuSans"])[0]
