"""Class-wise metrics: Fréchet distance within classes, and distances of the histograms of predicted classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dinit.evaluation.metrics.base import METRICS, MetricInputs, NotMeasured
from dinit.evaluation.metrics.frechet import frechet_distance, self_test
from dinit.evaluation.metrics.gaussian import gaussian_of

_TOP = (1, 5)


def class_distances(
    x: NDArray[np.float64], x_labels: NDArray[np.int64], y: NDArray[np.float64], y_labels: NDArray[np.int64]
) -> dict[int, float]:
    """Fréchet distance of each class with at least 2 images in both sets. Features (N, D) and (M, D)."""
    shared = [k for k in np.unique(y_labels).tolist() if min((x_labels == k).sum(), (y_labels == k).sum()) >= 2]
    return {k: frechet_distance(gaussian_of(x[x_labels == k]), gaussian_of(y[y_labels == k])) for k in shared}


@METRICS.register("cafd")
def cafd(inputs: MetricInputs) -> dict[str, float]:
    """Class-aware Fréchet distance: the mean over classes of the distance within each. Liu et al. 2018.

    Classes are the labels where both sets have them, otherwise those that the extractor's classifier predicts. An
    image counts in one class, wholly; in the paper it counts in every class by its posterior probability there, as
    in a mixture, so that the numbers are not the paper's. A class without samples has no distance; `cafd_classes`
    is the number of classes that have one.
    """
    self_test()
    ours, theirs = inputs.samples, inputs.reference
    if ours.pooled is None or theirs.pooled is None:
        raise NotMeasured("the reference holds statistics alone; distances within classes need its features")
    if inputs.knows_classes and ours.labels is not None and theirs.labels is not None:
        labels = (ours.labels, theirs.labels)
    elif ours.logits is not None and theirs.logits is not None:
        labels = (ours.logits.argmax(axis=1), theirs.logits.argmax(axis=1))
    else:
        raise NotMeasured("neither labels nor a classifier of these features are known")
    found = class_distances(ours.pooled, labels[0], theirs.pooled, labels[1])
    if not found:
        raise NotMeasured("no class has 2 images in both sets")
    inputs.evidence["class distances"] = found
    return {"cafd": float(np.mean(list(found.values()))), "cafd_classes": float(len(found))}


def top_histogram(logits: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """Histogram of the n likeliest classes of each image, as shares that sum to 1. logits: (N, classes)."""
    n = min(n, logits.shape[1])
    top = np.argpartition(-logits, n - 1, axis=1)[:, :n]
    return np.bincount(top.ravel(), minlength=logits.shape[1]) / top.size


@METRICS.register("fringe")
def fringe(inputs: MetricInputs) -> dict[str, float]:
    """Share of FID that histograms of predicted classes explain. Kynkäänniemi et al. 2023.

    top1_histogram, top5_histogram: total variation distance between the two sets' histograms of likeliest classes
    (0: equal, 1: no class shared); top 5 where there are more classes than 5. fid_matched: FID with the samples
    weighted so that their top-1 histogram equals the reference's; where it is far below FID, resampling alone
    would lower the score without improving a picture. The weight of an image follows from its likeliest class
    alone. The paper also optimises the weights for FID itself, which lowers the score further.
    """
    ours, theirs = inputs.samples, inputs.reference
    if ours.logits is None or theirs.logits is None or ours.pooled is None or theirs.gaussian is None:
        raise NotMeasured("histograms of classes need logits of both sets")
    scores = {}
    for n in _TOP:
        if n < ours.logits.shape[1]:
            a, b = top_histogram(ours.logits, n), top_histogram(theirs.logits, n)
            scores[f"top{n}_histogram"] = float(np.abs(a - b).sum() / 2)
    a, b = top_histogram(ours.logits, 1), top_histogram(theirs.logits, 1)
    weights = (b / np.where(a > 0, a, 1))[ours.logits.argmax(axis=1)]
    if np.count_nonzero(weights) > 1:
        weights *= len(weights) / weights.sum()
        scores["fid_matched"] = frechet_distance(gaussian_of(ours.pooled, weights), theirs.gaussian)
    inputs.evidence["top-1 histograms"] = (a, b)
    return scores
