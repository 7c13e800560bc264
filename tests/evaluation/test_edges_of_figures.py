"""Edges of figures: classes that a set lacks, which end of an interval is which, warnings, whole reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_features import case, featured

from dinit.evaluation import evaluate_images
from dinit.evaluation.evaluate import _label_sampling
from dinit.evaluation.image_features import ImageFeatures
from dinit.evaluation.metrics.base import METRICS
from dinit.evaluation.metrics.frechet import frechet_distance
from dinit.evaluation.metrics.gaussian import Gaussian, gaussian_of
from dinit.evaluation.reports.report import REAL, Protocol, Report, Row
from dinit.evaluation.resampling import intervals, resampled
from dinit.evaluation.sanity_checks import few_samples, grey

EXACT = ImageFeatures(0, statistics=Gaussian(np.zeros(3), np.eye(3)))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ([30, 10, 0], [10, 10, 20]),
        ([20, 20, 0], [0, 20, 20]),
        ([10, 30, 0], [20, 20, 0]),
        ([38, 1, 1], [1, 1, 38]),
    ],
)
def test_matched_classes_weigh_as_many_images_as_there_are(ours: list[int], theirs: list[int]) -> None:
    """Weights are shares of the reference over shares of the samples, and add up to the number of samples."""
    random = np.random.default_rng(0)
    a, b = (np.repeat(np.arange(3), counts) for counts in (ours, theirs))
    x, y = (random.standard_normal((40, 2)) + 3 * labels[:, None] for labels in (a, b))
    both = case(featured(x, logits=np.eye(3)[a]), featured(y, logits=np.eye(3)[b]))
    weights = (np.array(theirs) / np.maximum(ours, 1))[a]
    weights *= 40 / weights.sum()
    mean = weights @ x / 40
    covariance = (weights[:, None] * (x - mean)).T @ (x - mean) / 39
    found = METRICS["fringe"](both)
    assert found["fid_matched"] == pytest.approx(
        frechet_distance(Gaussian(mean, covariance), gaussian_of(y)), rel=1e-9
    )
    assert found["top1_histogram"] == pytest.approx(np.abs(np.subtract(ours, theirs)).sum() / 80)


@pytest.mark.parametrize("name", ["fid", "inception-score"])
def test_an_interval_has_the_quantiles_of_the_deviations(name: str) -> None:
    random = np.random.default_rng(0)
    x = random.exponential(size=(40, 3)) ** 2  # far from symmetric, so that the two ends differ
    both = case(featured(x, logits=np.where(random.random((40, 3)) < 0.1, 9.0, 0.0)), EXACT)
    key = name.replace("-", "_")
    values = np.array([METRICS[name](resampled(both, k))[key] for k in range(20)])
    low, high = np.quantile(values - values.mean(), [0.025, 0.975])
    exact = METRICS[name](both)[key]
    found = intervals(both, [name], 20)
    assert found == {f"{key}_low": pytest.approx(exact + low), f"{key}_high": pytest.approx(exact + high)}
    assert abs(low + high) > 0.05 * (high - low), "ends that show nothing"


def stripes(count: int, greys: int) -> torch.Tensor:
    """Images of one pixel, the first of them grey."""
    images = torch.tensor([1, 2, 3], dtype=torch.uint8).reshape(1, 3, 1, 1).repeat(count, 1, 1, 1)
    images[:greys] = 7
    return images


@pytest.mark.parametrize(
    ("ours", "theirs", "warned"),
    [
        ((1000, 15), (1000, 0), False),  # 1.5 %, below 2
        ((1000, 25), (1000, 0), True),  # 2.5 %, 5 times what chance would give
        ((1000, 0), (1000, 25), True),
        ((20, 6), (20, 3), False),  # 15 %, about one time what chance would give
        ((60, 15), (60, 12), False),
        ((20, 20), (20, 0), True),
        ((1000, 500), (1000, 450), False),  # 5 %, 2.2 times
        ((1000, 500), (1000, 400), True),
    ],
)
def test_grey_images_are_warned_of_beyond_2_percent_and_beyond_chance(ours: Any, theirs: Any, warned: bool) -> None:
    assert bool(grey(stripes(*ours), stripes(*theirs))) is warned


@pytest.mark.parametrize(("count", "warned"), [(2, True), (4, True), (5, True), (6, False), (50, False)])
def test_a_covariance_of_5_features_needs_6_images(count: int, warned: bool) -> None:
    made = featured(np.random.default_rng(0).standard_normal((count, 5)))
    assert bool(few_samples(made, "samples")) is warned


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        ([0, 1, 2, 0, 1, 2], 3, "balanced"),
        ([0, 1, 2, 0], 3, "balanced"),
        ([0, 1], 3, "balanced"),
        ([0, 0, 1, 2], 3, "balanced"),
        ([0, 0, 1, 1], 3, "as given"),
        ([0, 0], 3, "as given"),
        ([0, 1, 1, 1], 2, "as given"),
        ([0, 0], 0, "none"),
        (None, 3, "none"),
    ],
)
def test_labels_are_balanced_where_counts_differ_by_1_at_most(
    labels: list[int] | None, classes: int, said: str
) -> None:
    assert _label_sampling(None if labels is None else torch.tensor(labels), classes) == said


# --- reports -----------------------------------------------------------------------------------------------------

TYPES = {"str": "other", "int": 7, "bool": False}
OWN = Protocol(**{field.name: TYPES[str(field.type)] for field in fields(Protocol)})
WHOLE = Report(
    replace(OWN, real_count=5),
    (Row("mine", 3, {"fid": 1.25, "fid_low": 1.0}), Row(REAL, 5, {"fid": 0.5})),
    ("a note", "another"),
    {"steps": 5, "guidance": [{"name": "cfg", "scale": 2.0}]},
    ("a warning",),
    {"fid": {"counts": [10, 20], "values": [3.0, 2.0], "infinity": 1.0, "slope": 20.0}},
    {"nearest": "pictures are not written"},
)


def test_every_part_of_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    WHOLE.write_json(tmp_path / "report.json")
    found = Report.read_json(tmp_path / "report.json")
    for field in fields(Report):
        if field.name == "evidence":
            assert found.evidence == {}
            continue
        value = getattr(found, field.name)
        assert value == getattr(WHOLE, field.name), field.name
        assert not isinstance(value, (tuple, Mapping)) or value, f"{field.name} shows nothing"
    assert found == WHOLE
    WHOLE.write_json(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "report.json").read_bytes()


# --- rows and pictures of a report -------------------------------------------------------------------------------


def test_the_real_row_is_the_same_whatever_is_evaluated() -> None:
    metrics, labels = ("precision", "recall", "class-accuracy"), torch.arange(16) % 10
    random = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    flat = torch.full((16, 1, 8, 8), 90, dtype=torch.uint8)
    rows = [evaluate_images(images, labels, metrics=metrics, cuda=False) for images in (random, flat)]
    assert dict(rows[0].real.metrics) == dict(rows[1].real.metrics)
    for name in metrics:
        key = name.replace("-", "_")
        assert rows[0].real.metrics[key] > rows[0].model.metrics[key], f"{name} shows nothing"


def test_the_nearest_pairs_are_those_that_are_nearest_for_their_neighbourhood() -> None:
    """Shown first is what is nearest in units of the distance between training images, as the ratio is."""
    train = torch.tensor([0, 10, 100, 200], dtype=torch.uint8).reshape(
        4, 1, 1, 1
    )  # distances 10, 10, 90, 100 apart
    samples = torch.tensor([3, 104, 11, 230], dtype=torch.uint8).reshape(4, 1, 1, 1)
    parts = {"train": lambda: train}
    both = case(featured(np.zeros((4, 2)), images=samples), featured(np.zeros((4, 2))), **parts)
    METRICS["memorisation"](both)
    ours, theirs, distances = both.evidence["nearest"]
    assert ours.flatten().tolist() == [104, 11, 3, 230]  # ratios 4/90, 1/10, 3/10, 30/100
    assert theirs.flatten().tolist() == [100, 10, 0, 200]
    assert distances.tolist() == pytest.approx([4, 1, 3, 30])
