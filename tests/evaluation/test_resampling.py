"""Intervals against the spread of sets drawn again, and the curve of FID against its known bias."""

from __future__ import annotations

import numpy as np
import pytest
from made_features import case, featured

from dinit.evaluation.image_features import ImageFeatures
from dinit.evaluation.metrics.base import METRICS
from dinit.evaluation.metrics.frechet import frechet_distance
from dinit.evaluation.metrics.gaussian import Gaussian, gaussian_of
from dinit.evaluation.resampling import fid_curve, intervals, line, resampled, wilson

EXACT = ImageFeatures(0, statistics=Gaussian(np.zeros(4), np.eye(4)))


def drawn(seed: int, count: int = 400, shift: float = 0.8) -> ImageFeatures:
    x = np.random.default_rng(seed).standard_normal((count, 4))
    x[:, 0] += shift
    return featured(x)


def test_the_interval_of_fid_is_as_wide_as_fid_varies() -> None:
    values = np.array([METRICS["fid"](case(drawn(k), EXACT))["fid"] for k in range(200)])
    widths = []
    for k in range(6):
        found = intervals(case(drawn(k), EXACT), ["fid"], 100)
        assert found["fid_low"] < values[k] < found["fid_high"]
        widths.append(found["fid_high"] - found["fid_low"])
    exact = float(np.subtract(*np.quantile(values, [0.975, 0.025])))
    assert np.mean(widths) == pytest.approx(exact, rel=0.2)


def test_a_resampling_is_fixed_by_seed_and_number() -> None:
    both = case(drawn(0), EXACT)
    first, again, other = (resampled(both, k).samples.pooled for k in (3, 3, 4))
    assert first is not None
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert set(map(tuple, first)) < set(map(tuple, both.samples.pooled))
    with pytest.raises(ValueError, match="at least 20"):
        intervals(both, ["fid"], 5)


def test_shares_have_wilsons_interval() -> None:
    low, high = wilson(0.5, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert wilson(1.0, 96.0) == (pytest.approx(96 / (96 + 1.959964**2), abs=1e-9), pytest.approx(1.0))
    near = np.random.default_rng(0).standard_normal((60, 2))
    found = intervals(
        case(featured(near), featured(np.concatenate([near, near + 99]))), ["precision", "recall"], 20
    )
    assert (found["precision_low"], found["precision_high"]) == pytest.approx(wilson(1.0, 60))
    assert (found["recall_low"], found["recall_high"]) == pytest.approx(wilson(0.5, 120))


def test_inception_scores_interval_holds_it() -> None:
    logits = np.random.default_rng(0).standard_normal((300, 5)) * 2
    both = case(featured(logits, logits=logits), EXACT)
    found, value = (
        intervals(both, ["inception-score", "kid"], 50),
        METRICS["inception-score"](both)["inception_score"],
    )
    assert found["inception_score_low"] < value < found["inception_score_high"]
    assert found["inception_score_high"] - found["inception_score_low"] < 0.4
    assert len(found) == 2  # KID has a spread already


def test_a_line_is_found_again() -> None:
    x = np.array([0.1, 0.2, 0.4])
    assert line(x, 3 + 5 * x, np.array([1, 2, 9])) == (pytest.approx(3), pytest.approx(5))
    # of three points off a line, the heavy two decide
    assert line(np.array([1.0, 2, 3]), np.array([1.0, 2, 9]), np.array([1e9, 1e9, 1])) == (
        pytest.approx(0, abs=1e-6),
        pytest.approx(1, abs=1e-6),
    )


def test_the_curve_falls_as_1_over_n_to_the_distance_of_the_distributions() -> None:
    shift = 0.5
    ends, biases = [], []
    for seed in range(8):
        samples = drawn(seed, 2000, shift)
        points = fid_curve(samples, EXACT, seed)["fid"]
        ends.append(points["infinity"])
        biases.append(points["values"][0])
        assert points["counts"][0] == 400
        assert points["counts"][-1] == 2000
        assert points["values"][-1] == pytest.approx(frechet_distance(samples.gaussian, EXACT.statistics))
        assert points["slope"] > 0
    assert np.mean(ends) == pytest.approx(shift**2, abs=0.02)
    # the mean over subsets is tr Σ / N too far in the mean alone
    assert np.mean(biases) > shift**2 + 4 / 400


def test_the_curve_s_line_weighs_a_point_by_its_subsets() -> None:
    points = fid_curve(drawn(3, 600), EXACT, 3)["fid"]
    counts = np.array(points["counts"])
    slope, end = np.polyfit(1 / counts, points["values"], 1, w=np.sqrt(600 // counts))  # w is of the residuals
    assert points["slope"] == pytest.approx(slope, rel=1e-6)
    assert points["infinity"] == pytest.approx(end, rel=1e-6)


def test_no_curve_where_it_is_no_line() -> None:
    assert fid_curve(drawn(0, 15), EXACT, 0) == {}
    assert fid_curve(drawn(0, 100), ImageFeatures(9), 0) == {}
    assert gaussian_of(drawn(0, 15).pooled).count == 15
