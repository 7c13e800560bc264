"""Memorisation: each sample's nearest training image, in pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dinit.evaluation.image_features import ImageSource
from dinit.evaluation.metrics.base import METRICS, MetricInputs, NotMeasured

COPY = 1 / 3  # of the distance to the second nearest: below it a sample counts as a copy of the nearest
_ROWS, _COLUMNS = 512, 4096
_SHOWN = 12


@dataclass(frozen=True)
class Nearest:
    """Nearest training images of N samples; distances in bytes, root mean square over pixels.

    Attributes:
        first: distance to the nearest training image, (N,).
        second: distance to the second nearest, (N,).
        index: of the nearest, (N,).
        between: distance of the nearest to its own nearest other training image, (N,).
    """

    first: NDArray[np.float64]
    second: NDArray[np.float64]
    index: NDArray[np.int64]
    between: NDArray[np.float64]


def nearest(samples: ImageSource, train: ImageSource) -> Nearest:
    """Search of all training images for each sample, and for each one found.

    ValueError for fewer than 2 training images, or images of different shapes.
    """
    if len(train) < 2 or samples[0:1].shape[1:] != train[0:1].shape[1:]:
        raise ValueError(
            f"neighbours are sought among at least 2 images of one shape, got {tuple(samples[0:1].shape[1:])} in "
            f"{len(train)} of {tuple(train[0:1].shape[1:])}"
        )
    distances, indices = _two_nearest(samples, train)
    found = np.unique(indices[:, 0])
    others, _ = _two_nearest(train, train, found.tolist())
    between = others[np.searchsorted(found, indices[:, 0]), 1]  # the nearest of all is the image itself
    return Nearest(distances[:, 0], distances[:, 1], indices[:, 0], between)


def _two_nearest(
    samples: ImageSource, train: ImageSource, rows: list[int] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distances (N, 2) and indices (N, 2) of the two nearest training images of the samples, all or `rows`."""
    chosen = list(range(len(samples))) if rows is None else rows
    size = samples[0:1].numel()
    best = torch.full((len(chosen), 2), torch.inf, dtype=torch.float64)
    where = torch.zeros(len(chosen), 2, dtype=torch.int64)
    for column in range(0, len(train), _COLUMNS):
        columns = train[column : column + _COLUMNS].flatten(1).double()
        squares = columns.square().sum(1)
        for row in range(0, len(chosen), _ROWS):
            part = slice(row, row + _ROWS)
            x = samples[chosen[part]].flatten(1).double()
            # Bytes squared and summed are whole numbers below 2^53: exact in float64, however they are summed.
            square = x.square().sum(1)[:, None] + squares - 2 * (x @ columns.T)
            values, ids = torch.topk(square, min(2, square.shape[1]), dim=1, largest=False)
            both, ids = torch.cat([best[part], values], 1), torch.cat([where[part], ids + column], 1)
            best[part], order = torch.topk(both, 2, dim=1, largest=False)
            where[part] = ids.gather(1, order)
    return (best / size).sqrt().numpy(), where.numpy()


@METRICS.register("memorisation")
def memorisation(inputs: MetricInputs) -> dict[str, float]:
    """Copies of training images, by the distance to the nearest one in pixels.

    copies: share of samples nearer to one training image than a third of the distance to the second nearest (the
    criterion of Yoon et al. 2023). nearer: share that is nearer to its training image than any other training image
    is. nearest_ratio: median of the one distance over the other. Real images that no model was trained on have
    nonzero values too: the row of real images has those of the reference, for comparison.
    """
    samples = inputs.reference.images if inputs.of_real else inputs.samples.images
    given = inputs.train if inputs.of_real or inputs.trained_on is None else inputs.trained_on
    if given is None or samples is None:
        raise NotMeasured("the training images are not known; give the data set that the model was trained on")
    if given not in inputs.shared:
        inputs.shared[given] = given()
    train: ImageSource = inputs.shared[given]
    if samples[0:1].shape[1:] != train[0:1].shape[1:]:
        raise NotMeasured("samples and training images are of different shapes")
    found = nearest(samples, train)
    order = np.argsort(found.first / np.maximum(found.between, 1e-9), kind="stable")[:_SHOWN]
    inputs.evidence["nearest"] = (samples[order.tolist()], train[found.index[order].tolist()], found.first[order])
    return figures(found)


def figures(found: Nearest) -> dict[str, float]:
    """Scores of `memorisation`."""
    ratio = found.first / np.maximum(found.between, 1e-9)
    return {
        "copies": float((found.first < COPY * found.second).mean()),
        "nearer": float((found.first < found.between).mean()),
        "nearest_ratio": float(np.median(ratio)),
    }
