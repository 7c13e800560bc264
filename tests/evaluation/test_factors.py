"""Factors read back from images, and how evenly a set covers them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from dinit.data.glyphs import Factors, Glyphs
from dinit.evaluation.features.glyphs_classifier import SHIPPED, Reading, load_glyphs_classifier, standardised
from dinit.evaluation.metrics import factors as factors_module
from dinit.evaluation.metrics.factors import (
    bin_factors,
    colours,
    diversity,
    hue_of,
    read_factors,
    reader_errors,
    spread,
)

needs_weights = pytest.mark.skipif(
    not SHIPPED.exists(), reason="trained by python -m dinit.evaluation.features.glyphs_classifier, not yet shipped"
)


def turn(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs((a - b + 180) % 360 - 180)


@pytest.mark.parametrize(("size", "noise", "limit"), [(32, 0, 0.5), (64, 0, 0.5), (32, 8, 4)])
def test_colours_are_read_as_they_were_mixed(size: int, noise: float, limit: float) -> None:
    data = Glyphs("test", size=size, count=200)
    true, images = data.factor_arrays(), data.uint8_images()
    if noise:
        change = noise * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        images = (images + change).clamp(0, 255).to(torch.uint8)
    ink, ground = colours(images)
    assert turn(hue_of(ink), true.hue).max() < limit
    assert turn(hue_of(ground), true.background_hue).mean() < max(1.0, limit)
    assert np.abs(ground.mean(1) - true.background).max() < 0.5 + noise / 2


def test_bins_of_the_data_are_equally_likely() -> None:
    made = Glyphs("train", count=36_000).factor_arrays()
    for name, (bins, count) in bin_factors(made).items():
        times = np.bincount(bins, minlength=count)
        assert len(times) == count
        assert np.abs(times * count / 36_000 - 1).max() < 0.12, name


def test_a_spread_is_the_entropy_within_classes() -> None:
    labels = np.repeat([0, 1], 6000)
    uniform = np.arange(12_000) % 12
    found = spread(uniform, 12, labels)
    assert (found.entropy, found.coverage) == (1.0, 1.0)
    one_each = spread(labels, 12, labels)  # varied over all, but not within a class
    assert one_each.entropy == 0
    assert one_each.coverage == 1 / 12
    halves = spread(np.arange(12_000) % 2, 4, labels)
    assert abs(halves.entropy - math.log(2) / math.log(4) - 1 / 12_000 / math.log(4)) < 1e-12
    assert abs(halves.coverage - 0.5) < 1e-12
    few = spread(np.array([0, 1, 2]), 10, np.zeros(3, dtype=np.int64))
    assert abs(few.expected_coverage - (1 - 0.9**3)) < 1e-12


def test_the_correction_brings_small_samples_to_their_source() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(400), 40)
    source = np.array([0.4, 0.3, 0.2, 0.1])
    bins = random.choice(4, size=len(labels), p=source)
    exact = -(source * np.log(source)).sum() / math.log(4)
    assert abs(spread(bins, 4, labels).entropy - exact) < 0.006


FACTORS = {"rotation": 4.4, "scale": 62 / 128 - 1 / 42, "background": 82.5, "hue": 60, "background_hue": 270}
NUMBERS = [0.5, -0.5, -0.5, math.sqrt(0.5), math.sqrt(1.5), 0.0, -math.sqrt(2)]


def test_numbers_are_trained_and_read_in_the_same_units() -> None:
    """Rotation in 8.8°, scale in 1/21 of the side about 62/128, brightness in 90 bytes about grey; √2 of hues."""
    arrays: Any = {name: np.array([value]) for name, value in FACTORS.items()}
    place: Any = {name: np.zeros(1) for name in ("x", "y", "label", "font")}
    assert standardised(Factors(**arrays, **place)).tolist() == [pytest.approx(NUMBERS, abs=1e-6)]


def test_rotation_and_scale_are_read_back_in_their_units(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Reading(torch.eye(36)[:1], torch.eye(10)[3:4], torch.tensor([NUMBERS]))
    monkeypatch.setattr(factors_module, "read_glyphs", lambda images, model: said)
    read = read_factors(Glyphs("test", count=1).uint8_images())
    assert (read.label.tolist(), read.font.tolist()) == ([0], [3])
    assert float(read.rotation[0]) == pytest.approx(FACTORS["rotation"])
    assert float(read.scale[0]) == pytest.approx(FACTORS["scale"])


@pytest.mark.parametrize(
    ("name", "value", "bins"),
    [
        ("rotation", [-15.0, -10.5, -10.0, 0.0, 10.0, 10.5, 15.0], [0, 0, 1, 3, 4, 5, 5]),
        ("scale", [52 / 128, 58 / 128, 59 / 128, 65 / 128, 66 / 128, 72 / 128], [0, 0, 1, 1, 2, 2]),
        ("background", [16, 27, 28, 63, 192, 203, 204, 239], [0, 0, 1, 3, 4, 4, 5, 7]),
        ("hue", [0, 29, 30, 359], [0, 0, 1, 11]),
        ("background_hue", [0, 29, 30, 359], [0, 0, 1, 11]),
        ("font", [0, 9], [0, 9]),
    ],
)
def test_edges_of_the_bins_of_factors(name: str, value: list[float], bins: list[int]) -> None:
    given: Any = {field.name: np.zeros(len(value)) for field in dataclasses.fields(Factors)}
    assert bin_factors(Factors(**{**given, name: np.array(value)}))[name][0].tolist() == bins


@needs_weights
def test_readers_are_as_good_as_their_card_says() -> None:
    found = reader_errors(Glyphs("test", count=720))
    assert found["label"] >= 0.98
    assert found["font"] >= 0.85
    assert found["rotation"] < 3.5
    assert found["scale"] < 0.02
    assert found["hue"] < 0.5


@needs_weights
def test_a_set_that_lacks_a_font_or_a_hue_is_less_diverse() -> None:
    data = Glyphs("test", count=720, characters="".join(load_glyphs_classifier().config.class_names))
    images, labels = data.uint8_images(), torch.from_numpy(data.labels % 4)
    whole = diversity(images, labels)
    true = data.factor_arrays()
    chosen = torch.from_numpy((true.hue < 120) & (true.font != 0))
    part = diversity(images[chosen], labels[chosen])
    assert whole["hue"].entropy > 0.97
    assert abs(part["hue"].entropy - math.log(4) / math.log(12)) < 0.03
    assert part["hue"].coverage == pytest.approx(4 / 12, abs=0.03)
    assert part["font"].entropy < whole["font"].entropy
    assert diversity(images[:360])["rotation"].bins == 6


@needs_weights
def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"uint8 images, got torch\.float32"):
        read_factors(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"shape \(2,\), one an image"):
        diversity(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(3))
    with pytest.raises(ValueError, match="default characters and fonts"):
        reader_errors(Glyphs("test", count=10, characters="AB"))
