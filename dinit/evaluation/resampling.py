"""Confidence intervals of scores by resampling, and the bias of FID against the number of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinit.data.order import epoch_order, hash_words
from dinit.evaluation.image_features import ImageFeatures
from dinit.evaluation.metrics.base import METRICS, MetricInputs, NotMeasured
from dinit.evaluation.metrics.frechet import frechet_distance
from dinit.evaluation.metrics.gaussian import gaussian_of

_LEVEL = 0.95
_NORMAL = 1.959963984540054  # the normal's quantile at 97.5 %
_POINTS = 10
MIN_RESAMPLINGS = 20


def intervals(inputs: MetricInputs, metrics: Sequence[str], resamplings: int) -> dict[str, float]:
    """95 % intervals of the samples' scores as `NAME_low` and `NAME_high`; metrics without one are left out.

    FID and Inception score: the spread over resamplings with replacement (Efron 1979), centred on the score itself,
    since copies in a resampling bias its score. Shares (precision, recall, class accuracy): Wilson's interval. KID
    has its spread over subsets. The reference is not resampled. ValueError for fewer than 20 resamplings.
    """
    if resamplings < MIN_RESAMPLINGS:
        raise ValueError(f"intervals need at least {MIN_RESAMPLINGS} resamplings, got {resamplings}")
    found: dict[str, float] = {}
    for name in metrics:
        try:
            found |= _interval(inputs, name, resamplings)
        except NotMeasured:
            continue
    return found


def _interval(inputs: MetricInputs, name: str, resamplings: int) -> dict[str, float]:
    if name in ("precision", "recall", "class-accuracy"):
        value = next(iter(METRICS[name](inputs).values()))
        seen = inputs.reference.pooled if name == "recall" else inputs.samples.pooled
        low, high = wilson(value, inputs.samples.count if seen is None else len(seen))
        return {f"{name.replace('-', '_')}_low": low, f"{name.replace('-', '_')}_high": high}
    if name not in ("fid", "inception-score") or inputs.samples.pooled is None:
        return {}
    if name == "inception-score" and inputs.samples.logits is None:
        return {}
    key = name.replace("-", "_")
    exact = METRICS[name](inputs)[key]
    values = np.array([METRICS[name](resampled(inputs, k))[key] for k in range(resamplings)])
    low, high = np.quantile(values - values.mean(), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return {f"{key}_low": exact + float(low), f"{key}_high": exact + float(high)}


def resampled(inputs: MetricInputs, number: int) -> MetricInputs:
    """Inputs with their samples redrawn with replacement, by (seed, number)."""
    samples = inputs.samples
    rng = np.random.default_rng([inputs.settings.seed, number, 0xB007])
    rows = rng.integers(0, samples.count, samples.count)
    pooled = None if samples.pooled is None else samples.pooled[rows]
    logits = None if samples.logits is None else samples.logits[rows]
    return replace(inputs, samples=ImageFeatures(samples.count, pooled=pooled, logits=logits), evidence={}, _own={})


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` images. Wilson 1927; within [0, 1] and never of zero width."""
    z = _NORMAL**2 / count
    middle = (share + z / 2) / (1 + z)
    half = math.sqrt(z * (share * (1 - share) + z / 4)) / (1 + z)
    return max(0.0, middle - half), min(1.0, middle + half)


def fid_curve(samples: ImageFeatures, reference: ImageFeatures, seed: int) -> dict[str, Any]:
    """FID against the number of samples, extrapolated to N = ∞ by a straight line in 1/N. Chong & Forsyth 2020, §3.

    Subsets are drawn without replacement; small ones as often as they fit into the set, and averaged. The line
    removes the bias of the samples, not that of the reference.

    Returns:
        {"fid": {"counts", "values", "infinity", "slope"}}; empty for fewer than 4 samples for each feature
        dimension, where the curve is no line.
    """
    theirs, pooled = reference.gaussian, samples.pooled
    if theirs is None or pooled is None or len(pooled) < 4 * pooled.shape[1]:
        return {}
    lowest = max(len(pooled) // 5, 2 * pooled.shape[1])
    counts = np.unique(np.linspace(lowest, len(pooled), _POINTS).round().astype(int))
    values = []
    for count in counts:
        order = epoch_order(hash_words(seed, int(count)), 0, len(pooled))
        subsets = [order[i * count : (i + 1) * count] for i in range(len(pooled) // count)]
        values.append(float(np.mean([frechet_distance(gaussian_of(pooled[rows]), theirs) for rows in subsets])))
    infinity, slope = line(1 / counts, np.array(values), weights=len(pooled) // counts)
    return {
        "fid": {"counts": counts.tolist(), "values": values, "infinity": infinity, "slope": slope},
    }


def line(x: NDArray, y: NDArray, weights: NDArray) -> tuple[float, float]:
    """Intercept and slope of the weighted least-squares line through x, y, (n,) each."""
    w = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    middle_x, middle_y = w @ x, w @ y
    slope = float(w @ ((x - middle_x) * (y - middle_y)) / (w @ (x - middle_x) ** 2))
    return float(middle_y - slope * middle_x), slope
