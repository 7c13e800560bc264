"""Precision and recall by neighbourhoods of features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dinit.evaluation.metrics.base import METRICS, MetricInputs, NotMeasured

_ROWS = 2048
_EXACT = 1e9  # differences in one piece: some seconds


@dataclass(frozen=True)
class Inside:
    """Membership in the other set's manifold. samples: (N,), of each sample. reference: (M,), of each reference."""

    samples: NDArray[np.bool_]
    reference: NDArray[np.bool_]


def inside(samples: NDArray[np.float64], reference: NDArray[np.float64], k: int) -> Inside:
    """Membership of each image in the other set's manifold. Kynkäänniemi et al. 2019, Eqs. 1 to 3.

    The manifold is the union of balls around its images, each with the distance to the k-th nearest other image as
    its radius. Features (N, D) and (M, D), float64. ValueError unless both sets have more than k images.
    """
    if min(len(samples), len(reference)) <= k:
        raise ValueError(f"a neighbourhood of {k} needs more images, got {len(samples)} and {len(reference)}")
    x, y = torch.from_numpy(samples), torch.from_numpy(reference)
    radius_x, radius_y = _radii(x, k), _radii(y, k)
    in_y, in_x = np.zeros(len(x), dtype=bool), np.zeros(len(y), dtype=bool)
    for start in range(0, len(x), _ROWS):
        distances = _distances(x[start : start + _ROWS], y)
        in_y[start : start + _ROWS] = (distances <= radius_y).any(dim=1).numpy()
        in_x |= (distances <= radius_x[start : start + _ROWS, None]).any(dim=0).numpy()
    return Inside(in_y, in_x)


def _radii(x: torch.Tensor, k: int) -> torch.Tensor:
    """Distance of each row to its k-th nearest other row, (N,)."""
    return torch.cat([_distances(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(_ROWS)])


def _distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    # By differences: by products, a small distance between long vectors loses half of its digits, and a copy is not
    # at distance 0. By products of centred vectors where differences would take minutes.
    if x.numel() * len(y) < _EXACT:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")
    middle = y.mean(dim=0)
    return torch.cdist(x - middle, y - middle, compute_mode="use_mm_for_euclid_dist")


def _both(inputs: MetricInputs) -> Inside:
    ours, theirs, k = inputs.samples.pooled, inputs.reference.pooled, inputs.settings.prc_neighborhood
    if ours is None or theirs is None:
        raise NotMeasured("the reference holds statistics alone; precision and recall need its images or features")
    return inputs.once("inside", lambda: inside(ours, theirs, k))


@METRICS.register("precision")
def precision(inputs: MetricInputs) -> dict[str, float]:
    """Share of samples within the manifold of the reference. Kynkäänniemi et al. 2019."""
    return {"precision": float(_both(inputs).samples.mean())}


@METRICS.register("recall")
def recall(inputs: MetricInputs) -> dict[str, float]:
    """Share of the reference within the manifold of the samples. Kynkäänniemi et al. 2019."""
    return {"recall": float(_both(inputs).reference.mean())}
