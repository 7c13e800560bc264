"""Metrics beyond FID on sets whose figures are known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from made_features import SETTINGS, case, featured, pictures

from dinit.data.digits import Digits
from dinit.data.glyphs import Glyphs
from dinit.evaluation import EXTRACTORS, ReportOptions, evaluate_images
from dinit.evaluation.features.glyphs_classifier import SHIPPED
from dinit.evaluation.image_features import ImageFeatures
from dinit.evaluation.metrics.base import METRICS, NotMeasured, measure, measure_inputs
from dinit.evaluation.metrics.classes import class_distances, top_histogram
from dinit.evaluation.metrics.embedding_distances import CallableExtractor, mmd_rbf
from dinit.evaluation.metrics.gaussian import Gaussian, gaussian_of
from dinit.evaluation.metrics.memorisation import figures, nearest

RNG = np.random.default_rng(1)


def logits_of(labels: np.ndarray, classes: int) -> np.ndarray:
    return 50.0 * np.eye(classes)[labels]


def test_sfid_is_the_distance_of_the_maps_and_not_of_pooled_features() -> None:
    places = Gaussian(np.zeros(2), np.eye(2)), Gaussian(np.array([3.0, 4.0]), 4 * np.eye(2))
    x = RNG.standard_normal((30, 3))
    found = METRICS["sfid"](case(featured(x, spatial=places[0]), featured(x, spatial=places[1])))
    assert found == {"sfid": pytest.approx(25 + 2)}
    with pytest.raises(NotMeasured, match="mu_s"):
        METRICS["sfid"](case(featured(x, spatial=places[0]), featured(x)))
    with pytest.raises(NotMeasured, match="no spatial features"):
        METRICS["sfid"](case(featured(x), featured(x, spatial=places[0])))


def test_maps_of_the_digits_see_a_shift_that_pooled_features_hardly_do() -> None:
    test, extractor = Digits("test").uint8_images(), EXTRACTORS["digits-classifier"]()
    flat = measure(test.flip(-1), test, extractor, SETTINGS, ["fid", "sfid"], cuda=False)
    assert measure(test, test, extractor, SETTINGS, ["sfid"], cuda=False)["sfid"] == pytest.approx(0, abs=1e-8)
    assert flat["sfid"] > 10
    network = extractor.network("cpu", spatial=True)(test[:3])
    assert network.spatial is not None
    # (height, width, channel), the first 7 channels of what the pooled features are the mean of
    torch.testing.assert_close(network.spatial.view(3, 16, 7).mean(1), network.pooled[:, :7])


def test_mmd_of_points_and_of_gaussians() -> None:
    x, y = np.zeros((1, 2)), np.array([[3.0, 4.0]])
    assert mmd_rbf(x, y, sigma=10.0) == pytest.approx(2 - 2 * math.exp(-25 / 200), rel=1e-12)
    assert mmd_rbf(y, y) == pytest.approx(0, abs=1e-12)
    # two unit Gaussians in 2 dimensions, m apart: E k = σ²/(σ² + 2) · exp(-m²/(2 (σ² + 2))); within each m is 0
    a, b = RNG.standard_normal((2, 1500, 2)) + np.array([[[0, 0]], [[1.5, 0]]])
    spread = 1 / (1 + 2)
    exact = 2 * spread * (1 - math.exp(-(1.5**2) / (2 * 3)))
    assert mmd_rbf(a, b, sigma=1.0) == pytest.approx(exact, rel=0.1)


def test_cmmd_is_of_embeddings_of_length_1() -> None:
    def embed(images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :2].float()

    ours, theirs = (torch.zeros(8, 1, 2, 2, dtype=torch.uint8) for _ in range(2))
    ours[:, 0, 0, 0], theirs[:, 0, 0, 1] = 9, 200  # two directions at right angles, of other lengths
    sets = [featured(np.zeros((8, 1)), images=images) for images in (ours, theirs)]
    both = case(sets[0], sets[1], encoders={"cmmd": embed, "fdd": embed}, cuda=False)
    assert METRICS["cmmd"](both)["cmmd"] == pytest.approx(1000 * (2 - 2 * math.exp(-2 / 200)), rel=1e-9)
    assert METRICS["fdd"](both)["fdd"] == pytest.approx(9**2 + 200**2)
    assert both.shared["cmmd"].startswith("cmmd: embed (")
    few = case(sets[0], ImageFeatures(20, images=theirs), encoders={"cmmd": embed})
    with pytest.raises(NotMeasured, match="holds a few only"):
        METRICS["cmmd"](few)


def test_encoders_that_are_not_on_disk_are_a_line_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("DINIT_CLIP_WEIGHTS", "DINIT_DINOV2_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    images = featured(np.zeros((8, 1)), images=pictures(8))
    scores, missing = measure_inputs(case(images, images), ["cmmd", "fdd"])
    assert scores == {}
    assert "ViT-L-14-336px.pt" in missing[0]
    assert "dinov2_vitl14_pretrain.pth" in missing[1]


def test_a_function_is_told_by_its_parameters() -> None:
    torch.manual_seed(0)
    first, second = torch.nn.Linear(4, 2), torch.nn.Linear(4, 2)
    hashes = [CallableExtractor(embed=one).weights_hash() for one in (first, second, first)]
    assert hashes[0] == hashes[2] != hashes[1]


def test_cafd_is_the_mean_distance_within_classes() -> None:
    labels = np.repeat([0, 1, 2], 40)
    x = RNG.standard_normal((120, 2))
    moved = x + np.array([[0, 0], [1, 0], [0, 3]])[labels]
    found = class_distances(moved, labels, x, labels)
    assert found == {0: pytest.approx(0, abs=1e-9), 1: pytest.approx(1), 2: pytest.approx(9)}
    both = case(featured(moved, labels=labels), featured(x, labels=labels), knows_classes=True)
    assert METRICS["cafd"](both) == {"cafd": pytest.approx(10 / 3), "cafd_classes": 3}
    # classes swapped: no marginal statistic sees it, distances within classes do
    sorted_x = np.where(labels[:, None] == 0, -5.0, 5.0) + 0.1 * x
    swapped = np.where(labels == 0, 1, np.where(labels == 1, 0, 2))
    wrong = case(featured(sorted_x, labels=swapped), featured(sorted_x, labels=labels), knows_classes=True)
    assert METRICS["fid"](wrong)["fid"] == pytest.approx(0, abs=1e-9)
    assert METRICS["cafd"](wrong)["cafd"] > 100
    read = logits_of(labels, 3)
    by_classifier = case(featured(moved, logits=read), featured(x, logits=read))
    assert METRICS["cafd"](by_classifier)["cafd"] == pytest.approx(10 / 3)
    with pytest.raises(NotMeasured, match="neither labels nor a classifier"):
        METRICS["cafd"](case(featured(x), featured(x)))


def test_histograms_of_the_likeliest_classes() -> None:
    logits = np.array([[3.0, 2, 1, 0], [3, 1, 2, 0], [0, 1, 2, 3]])
    assert top_histogram(logits, 1).tolist() == pytest.approx([2 / 3, 0, 0, 1 / 3])
    assert top_histogram(logits, 2).tolist() == pytest.approx([2 / 6, 1 / 6, 2 / 6, 1 / 6])


@pytest.mark.parametrize(("classes", "names"), [(5, {"top1_histogram"}), (6, {"top1_histogram", "top5_histogram"})])
def test_the_top_5_of_5_classes_are_no_score(classes: int, names: set[str]) -> None:
    logits = np.random.default_rng(0).standard_normal((40, classes))
    same = featured(RNG.standard_normal((40, 2)), logits=logits)
    assert {name for name in METRICS["fringe"](case(same, same)) if name.startswith("top")} == names


def test_fringe_tells_classes_from_pictures() -> None:
    theirs, ours = np.repeat([0, 1], [50, 50]), np.repeat([0, 1], [90, 10])
    centres = np.array([[-4.0, 0], [4.0, 0]])
    noise = RNG.standard_normal((100, 2))
    ours_x, theirs_x = centres[ours] + noise, centres[theirs] + RNG.standard_normal((100, 2))
    both = case(featured(ours_x, logits=logits_of(ours, 2)), featured(theirs_x, logits=logits_of(theirs, 2)))
    found = METRICS["fringe"](both)
    assert found["top1_histogram"] == pytest.approx(0.4)
    assert "top5_histogram" not in found  # there are 2 classes
    weights = np.where(ours == 0, 50 / 90, 5.0)
    exact = np.average(ours_x, axis=0, weights=weights)
    matched = gaussian_of(ours_x, weights)
    np.testing.assert_allclose(matched.mean, exact)
    assert found["fid_matched"] < 0.1 * METRICS["fid"](both)["fid"]
    same = METRICS["fringe"](case(both.samples, both.samples))
    assert same == {"top1_histogram": 0, "fid_matched": pytest.approx(0, abs=1e-9)}


def test_nearest_neighbours_of_images_on_a_line() -> None:
    def grey(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()

    found = nearest(grey(11, 48, 100), grey(10, 20, 50, 100, 104))
    assert found.index.tolist() == [0, 2, 3]
    assert found.first.tolist() == [1, 2, 0]
    assert found.second.tolist() == [9, 28, 4]
    assert found.between.tolist() == [10, 30, 4]
    # 11: 1 < 9 / 3; 48: 2 < 28 / 3; 100: 0 < 4 / 3
    assert figures(found) == {"copies": 1.0, "nearer": 1.0, "nearest_ratio": pytest.approx(2 / 30)}
    apart = figures(nearest(grey(15, 35), grey(10, 20, 50)))
    assert apart == {"copies": 0.0, "nearer": 0.5, "nearest_ratio": pytest.approx((0.5 + 1.5) / 2)}
    with pytest.raises(ValueError, match="at least 2 images"):
        nearest(grey(1), grey(1))


def test_neighbours_are_sought_over_all_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, train = pictures(37, seed=1), pictures(90, seed=2)
    whole = nearest(samples, train)
    monkeypatch.setattr("dinit.evaluation.metrics.memorisation._ROWS", 8)
    monkeypatch.setattr("dinit.evaluation.metrics.memorisation._COLUMNS", 7)
    found = nearest(samples, train)
    distances = torch.cdist(samples.flatten(1).double(), train.flatten(1).double()) / 4
    assert np.allclose(found.first, distances.min(1).values)
    assert np.allclose(found.second, distances.kthvalue(2, 1).values)
    assert np.array_equal(found.between, whole.between)


def test_given_back_training_images_are_found_and_real_ones_are_not() -> None:
    data = Digits("train")
    images = data.uint8_images(list(range(60)))
    stolen = evaluate_images(images, metrics=["memorisation"], cuda=False)
    assert stolen.model.metrics["copies"] == 1.0
    assert stolen.model.metrics["nearest_ratio"] == 0.0
    # the row of real images is of those that no model is trained on
    assert stolen.real.metrics["copies"] < 0.02
    assert stolen.real.metrics["nearest_ratio"] > 0.8
    ours, theirs, distances = stolen.evidence["nearest"]
    assert torch.equal(ours, theirs)
    assert distances.max() == 0


def test_diversity_is_of_glyphs_alone() -> None:
    digits = Digits("train").uint8_images(list(range(40)))
    report = evaluate_images(digits, metrics=["diversity", "fid"], cuda=False)
    assert "hue_entropy" not in report.model.metrics
    assert any("factors are known for glyphs alone" in note for note in report.notes)


@pytest.mark.skipif(not SHIPPED.exists(), reason="needs the glyphs classifier")
def test_glyphs_of_one_hue_lose_the_entropy_of_hue_alone() -> None:
    data = Glyphs("train", count=2000, characters="AB", seed=5)
    one = np.flatnonzero(data.factor_arrays().hue < 30)[:150]
    images, labels = data.uint8_images(one.tolist()), torch.from_numpy(data.labels[one] * 0)
    options = {"name": "glyphs", "count": 150, "characters": "AB"}
    found = evaluate_images(images, labels, options, metrics=["diversity"], cuda=False)
    assert found.protocol.name == "glyphs"
    assert found.model.metrics["hue_entropy"] < 0.1
    assert found.model.metrics["hue_coverage"] < 0.2
    assert found.model.metrics["font_entropy"] > 0.9
    assert {"rotation_entropy", "factor_entropy", "factor_coverage"} <= set(found.real.metrics)


def test_figures_of_own_encoders_are_in_report_and_protocol() -> None:
    data = Digits("train")
    images = data.uint8_images(list(range(40)))
    mean = torch.nn.Flatten()
    report = evaluate_images(
        images,
        metrics=["cmmd"],
        cuda=False,
        report_options=ReportOptions(encoders={"cmmd": lambda x: mean(x).float()}),
    )
    assert report.model.metrics["cmmd"] < 1
    assert report.protocol.encoders.startswith("cmmd: ")
    own = evaluate_images(images, features=lambda x: mean(x).float(), metrics=["fid", "kid"], cuda=False)
    assert own.protocol.name == "custom"
    assert {"fid", "kid"} <= set(own.model.metrics)
    assert any("40 samples for 64 features" in line for line in own.warnings)
