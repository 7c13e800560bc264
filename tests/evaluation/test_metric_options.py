"""Every setting of the metrics and option of the extractors away from its default: it changes a score, and is kept.

A new setting needs a row in SETTINGS, a new option of an extractor one in EXTRACTOR_OPTIONS.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_features import NoExtractor, featured
from safetensors.torch import load_file, save_file

from dinit.data.digits import Digits
from dinit.evaluation import EXTRACTORS, ReportOptions, evaluate_images
from dinit.evaluation.metrics.base import METRICS, MetricInputs, Settings
from dinit.evaluation.metrics.manifold import inside
from dinit.evaluation.protocols import choose_protocol
from dinit.evaluation.reports.report import Protocol

PLAIN = Settings(kid_subset_size=20, kid_subsets=4, isc_splits=2, prc_neighborhood=3, seed=0)
OTHER = {  # setting: another value, and a score that it changes
    "kid_subset_size": (30, "kid", "kid"),
    "kid_subsets": (7, "kid", "kid"),
    "isc_splits": (5, "inception-score", "inception_score"),
    "prc_neighborhood": (1, "precision", "precision"),
    "seed": (1, "kid", "kid"),
    "isc_shuffle": (False, "inception-score", "inception_score"),
}


def test_every_setting_has_another_value() -> None:
    assert {field.name for field in dataclasses.fields(Settings)} == set(OTHER)
    assert set(OTHER) <= {field.name for field in dataclasses.fields(Protocol)}


def scores(settings: Settings, metric: str) -> dict[str, float]:
    draw = np.random.default_rng(0)
    ours, theirs = draw.standard_normal((60, 4)), 0.7 * draw.standard_normal((50, 4)) + 0.3
    logits = np.sort(3 * draw.standard_normal((60, 5)), axis=0)  # in an order that shuffling undoes
    return METRICS[metric](MetricInputs(featured(ours, logits=logits), featured(theirs), NoExtractor(), settings))


@pytest.mark.parametrize("setting", sorted(OTHER))
def test_a_setting_changes_a_score(setting: str) -> None:
    value, metric, figure = OTHER[setting]
    changed = dataclasses.replace(PLAIN, **{setting: value})
    assert scores(PLAIN, metric) == scores(PLAIN, metric)
    assert scores(PLAIN, metric)[figure] != scores(changed, metric)[figure]


def test_the_seed_shuffles_the_splits_of_the_inception_score() -> None:
    one, other = (scores(dataclasses.replace(PLAIN, seed=seed), "inception-score") for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize(
    ("k", "samples", "reference"),
    [
        (1, [True, True, True, True, False], [True, True, False]),
        (2, [True, True, True, True, True], [True, True, True]),
    ],
)
def test_a_neighbourhood_reaches_to_the_kth_other_image(k: int, samples: list[bool], reference: list[bool]) -> None:
    """Points on a line: with k = 1 the radii of the reference are 3, 3 and 7, with k = 2 they are 10, 7 and 10."""
    found = inside(np.array([[-3.0], [4.0], [6.5], [17.0], [18.0]]), np.array([[0.0], [3.0], [10.0]]), k)
    assert found.samples.tolist() == samples
    assert found.reference.tolist() == reference
    beyond = inside(np.array([[-3.1], [6.1], [17.1], [30.0]]), np.array([[0.0], [3.0], [10.0]]), 1)
    assert beyond.samples.tolist() == [False, True, False, False]  # 6.1 is 3.9 from 10


def test_settings_and_seed_are_in_the_report() -> None:
    images = Digits("train").uint8_images(list(range(40)))
    report = evaluate_images(images, metrics=["kid"], seed=5, cuda=False, made_by={"nfe": 7}, label_sampling="mine")
    settings = choose_protocol(None, None, "digits-classifier").settings([40, 40, 359], 40, 5)
    assert {name: getattr(report.protocol, name) for name in OTHER} == dataclasses.asdict(settings)
    assert report.protocol.seed == 5
    assert report.made_by == {"nfe": 7}
    assert report.protocol.labels == "mine"
    assert evaluate_images(images, metrics=["kid"], seed=6, cuda=False).model.metrics != report.model.metrics


EXTRACTOR_OPTIONS = {(name, "weights") for name in EXTRACTORS}
# test_image_classifier.py has the weights of `dinit classifier`; "none" has none
OWN_WEIGHTS = [name for name in EXTRACTORS.names() if name not in ("classifier", "none")]
REPORT_OPTIONS = {
    "bootstrap",
    "curve",
    "encoders",
}  # test_resampling.py and test_more_metrics.py have their figures


def test_every_option_of_extractors_and_reports_is_known() -> None:
    kinds: Any = {name: EXTRACTORS[name] for name in EXTRACTORS}
    known = {(name, field.name) for name, kind in kinds.items() for field in dataclasses.fields(kind)}
    assert known == EXTRACTOR_OPTIONS
    assert {field.name for field in dataclasses.fields(ReportOptions)} == REPORT_OPTIONS


@pytest.mark.parametrize("name", OWN_WEIGHTS)
def test_other_weights_are_the_ones_that_are_read(name: str, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for number, place in enumerate((one, other)):
        if "classifier" in name:
            shutil.copytree(EXTRACTORS.create(name).weights_path(), place)
            tensors = load_file(place / "model.safetensors")
            first = next(iter(tensors))
            save_file({**tensors, first: tensors[first] + number}, place / "model.safetensors")
        else:
            torch.save({"weight": torch.full((3,), float(number))}, place)
    made = [EXTRACTORS.create({"name": name, "weights": str(place)}) for place in (one, other)]
    assert [Path(extractor.weights_path()) for extractor in made] == [one, other]
    assert made[0].weights_hash() != made[1].weights_hash()
