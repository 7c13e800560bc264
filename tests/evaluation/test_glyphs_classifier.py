"""The glyphs classifier: what it reads, and that its training and its files repeat."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dinit.data.glyphs import Glyphs
from dinit.data.pixels import from_uint8
from dinit.evaluation import evaluate_images
from dinit.evaluation.features.glyphs_classifier import (
    SHIPPED,
    GlyphsClassifier,
    accuracy,
    load_glyphs_classifier,
    read_glyphs,
    shrink,
    standardised,
    train_glyphs_classifier,
)

needs_weights = pytest.mark.skipif(
    not SHIPPED.exists(), reason="trained by python -m dinit.evaluation.features.glyphs_classifier, not yet shipped"
)


@needs_weights
def test_the_shipped_classifier_reads_both_sizes_and_noise() -> None:
    assert accuracy(load_glyphs_classifier(), Glyphs("test", count=1080)) >= 0.98
    assert accuracy(load_glyphs_classifier(), Glyphs("test", size=64, count=360)) >= 0.95
    data = Glyphs("test", count=720)
    noise = 0.2 * torch.randn((720, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    noisy = (from_uint8(data.uint8_images()) + noise).clamp(-1, 1)
    assert float((read_glyphs(noisy).characters.argmax(1) == torch.from_numpy(data.labels)).double().mean()) > 0.93
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 1_000_000


def test_shrinking_is_the_mean_over_squares() -> None:
    images = torch.arange(64.0).view(1, 1, 1, 64).expand(2, 3, 64, 64)
    assert torch.equal(shrink(images)[0, 0, 0], torch.arange(32.0) * 2 + 0.5)
    for shape in [(2, 1, 32, 32), (2, 3, 48, 48), (2, 3, 32, 64)]:
        with pytest.raises(ValueError, match="reads images of"):
            shrink(torch.zeros(shape))


def test_numbers_to_learn_have_unit_size() -> None:
    found = standardised(Glyphs("train", count=20_000).factor_arrays())
    assert found.mean(0).abs().max() < 0.04
    assert (found.std(0) - 1).abs().max() < 0.2
    one = Glyphs("test").factors(5)
    hue = torch.atan2(standardised(one)[4], standardised(one)[3]).rad2deg() % 360
    assert abs(float(hue) - float(one.hue)) < 1e-3


def test_training_repeats_and_leaves_the_global_generator() -> None:
    state = torch.get_rng_state()
    first, second = (train_glyphs_classifier(seed=3, steps=3, batch_size=16) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


@needs_weights
def test_glyphs_are_judged_by_their_classifier_unless_told_otherwise() -> None:
    data = Glyphs("test", count=144, seed=9)
    report = evaluate_images(
        data.uint8_images(), torch.from_numpy(data.labels), {"name": "glyphs", "count": 288}, cuda=False
    )
    assert report.protocol.features == "glyphs-classifier"
    assert report.model.metrics["class_accuracy"] > 0.97
    assert report.model.metrics["fid"] < 2 * report.real.metrics["fid"]
    dull = (data.uint8_images().float().mean(1, keepdim=True).expand(-1, 3, -1, -1)).to(torch.uint8)
    grey = evaluate_images(dull, None, {"name": "glyphs", "count": 288}, metrics=["fid"], cuda=False)
    assert grey.model.metrics["fid"] > 3 * report.model.metrics["fid"]  # the features know colour


@needs_weights
def test_characters_that_it_does_not_know_are_not_judged() -> None:
    data = Glyphs("test", count=40, characters="AB")
    options = {"name": "glyphs", "count": 80, "characters": "AB"}
    labels = torch.from_numpy(data.labels)
    report = evaluate_images(data.uint8_images(), labels, options, metrics=["class-accuracy"], cuda=False)
    assert "class_accuracy" not in report.model.metrics
    assert any("reads no classes" in note for note in report.notes)


def test_a_saved_classifier_is_the_same(tmp_path: Path) -> None:
    model = GlyphsClassifier().eval()
    model.save_pretrained(tmp_path)
    images = Glyphs("test", count=8).uint8_images()
    again = GlyphsClassifier.from_pretrained(tmp_path)
    assert torch.equal(read_glyphs(images, model).characters, read_glyphs(images, again).characters)
    (tmp_path / "config.json").write_text('{"width": 3}')
    with pytest.raises(ValueError, match="holds no glyphs classifier"):
        GlyphsClassifier.from_pretrained(tmp_path)
