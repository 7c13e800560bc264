"""Mean and covariance of features, accumulated in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Gaussian:
    """Gaussian of a set's features.

    Attributes:
        mean: (D,).
        covariance: (D, D), unbiased.
        count: number of images, 0 if unknown.

    Raises:
        ValueError: other shapes, NaN or infinity.
    """

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    count: int = 0

    def __post_init__(self) -> None:
        size = len(self.mean)
        if self.mean.shape != (size,) or self.covariance.shape != (size, size):
            raise ValueError(
                f"a mean (D,) and a covariance (D, D) are needed, got {self.mean.shape}, {self.covariance.shape}"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ValueError("the statistics hold NaN or infinity: the features of some image are not finite")

    @property
    def dim(self) -> int:
        """Number of features D."""
        return len(self.mean)

    @property
    def rank_deficient(self) -> bool:
        """Whether there are fewer images than a covariance of full rank needs (D + 1)."""
        return 0 < self.count <= self.dim


class Moments:
    """Running mean and covariance of rows, in one pass and without cancellation.

    Batches are merged by their means (Chan, Golub & LeVeque 1983, Eq. 1.5a), so that a feature whose mean is large
    relative to its spread keeps its digits. Rows may have weights, which count images: 2 is the row twice.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self._mean: NDArray[np.float64] | None = None
        self._scatter: NDArray[np.float64] | None = None

    def update(self, features: NDArray, weights: NDArray | None = None) -> None:
        """Add features (B, D) of any float type. weights: (B,), >= 0. ValueError for another shape."""
        rows = np.asarray(features, dtype=np.float64)
        if rows.ndim != 2:
            raise ValueError(f"features must be (B, D), got {rows.shape}")
        if not len(rows):
            return
        share = None if weights is None else np.asarray(weights, dtype=np.float64)
        total = float(len(rows)) if share is None else float(share.sum())
        if total <= 0:
            return
        mean = rows.mean(axis=0) if share is None else share @ rows / total
        centred = rows - mean
        scatter = centred.T @ (centred if share is None else centred * share[:, None])
        if self._mean is None or self._scatter is None:
            self.count, self._mean, self._scatter = total, mean, scatter
            return
        if mean.shape != self._mean.shape:
            raise ValueError(f"features have {len(mean)} dimensions, those before had {len(self._mean)}")
        both, step = self.count + total, mean - self._mean
        self._scatter += scatter + np.outer(step, step) * (self.count * total / both)
        self._mean = self._mean + step * (total / both)
        self.count = both

    def gaussian(self) -> Gaussian:
        """Gaussian of all rows so far. ValueError for fewer than 2, which have no covariance."""
        if self._mean is None or self._scatter is None or self.count < 2:
            raise ValueError(f"a covariance needs at least 2 images, got {self.count:g}")
        covariance = self._scatter / (self.count - 1)
        return Gaussian(self._mean.copy(), (covariance + covariance.T) / 2, round(self.count))


def gaussian_of(features: NDArray, weights: NDArray | None = None, piece: int = 4096) -> Gaussian:
    """Gaussian of features (N, D), read in batches of `piece` rows. weights: as in `Moments.update`."""
    moments = Moments()
    for start in range(0, len(features), piece):
        stop = start + piece
        moments.update(features[start:stop], None if weights is None else weights[start:stop])
    return moments.gaussian()
