"""Fréchet distance between two Gaussians, with a self-test of this machine's linear algebra."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from dinit.evaluation.metrics.gaussian import Gaussian

_ROUNDING = 1e-5  # of the largest entry: what a covariance that was summed or stored in float32 may be off by
_CLOSE = 1e-9


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Fréchet distance |m_a - m_b|² + tr(S_a + S_b - 2 (S_a^½ S_b S_a^½)^½), in squared units of the features.

    Dowson & Landau 1982; as FID: Heusel et al. 2017, Eq. 6. ValueError for different dimensions or a matrix that is
    no covariance.
    """
    if a.dim != b.dim:
        raise ValueError(f"the features of the two sets have {a.dim} and {b.dim} dimensions; extract both alike")
    shift = a.mean - b.mean
    # With S = F Fᵀ the trace of the root is the sum of the singular values of F_aᵀ F_b: no root of a product is
    # taken, which would lose half of the digits where a covariance has not full rank.
    roots = np.linalg.svd(factor(a.covariance).T @ factor(b.covariance), compute_uv=False)
    return float(shift @ shift + np.trace(a.covariance) + np.trace(b.covariance) - 2 * roots.sum())


def factor(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factor F (D, rank) with F Fᵀ = covariance, by the eigenvalues of the symmetric matrix in float64.

    Eigenvalues within rounding are taken as 0. ValueError for one that is clearly below 0, or a
    matrix that is not symmetric.
    """
    gap, size = float(np.abs(covariance - covariance.T).max()), float(np.abs(covariance).max())
    if gap > _ROUNDING * size:
        raise ValueError(f"a covariance is symmetric; this one differs from its transpose by {gap:.3g}")
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if values[0] < -_ROUNDING * max(values[-1], 0.0) - np.finfo(float).tiny:
        raise ValueError(
            f"a covariance has no eigenvalue below 0, this one has {values[0]:.3g}; the largest is {values[-1]:.3g}"
        )
    kept = values > len(values) * np.finfo(float).eps * values[-1]
    return vectors[:, kept] * np.sqrt(values[kept])


@cache
def self_test() -> None:
    """Check three known distances before the first score of a process. RuntimeError where one is wrong.

    A set against itself (0, also where its covariance has not full rank); two Gaussians whose covariances share no
    axes: in two dimensions tr (S_a^½ S_b S_a^½)^½ = √(tr S_a S_b + 2 √(det S_a det S_b)); one and its double.
    """
    rng = np.random.default_rng(0)
    for rows in (12, 200):
        x = rng.standard_normal((rows, 40)) * np.geomspace(1e-2, 10, 40)
        own = Gaussian(x.mean(0), np.cov(x, rowvar=False), rows)
        _expect("a set against itself", frechet_distance(own, own), 0.0, float(np.trace(own.covariance)))
    s_a, s_b = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[1.0, -0.7], [-0.7, 3.0]])
    m_a, m_b = np.array([1.0, -2.0]), np.array([0.5, 1.0])
    root = np.sqrt(np.trace(s_a @ s_b) + 2 * np.sqrt(np.linalg.det(s_a) * np.linalg.det(s_b)))
    exact = float((m_a - m_b) @ (m_a - m_b) + np.trace(s_a) + np.trace(s_b) - 2 * root)
    _expect("a pair of Gaussians", frechet_distance(Gaussian(m_a, s_a), Gaussian(m_b, s_b)), exact, exact)
    found = frechet_distance(Gaussian(m_a, s_a), Gaussian(2 * m_a, 4 * s_a))
    exact = float(m_a @ m_a + np.trace(s_a))
    _expect("a set and its double", found, exact, exact)


def _expect(what: str, found: float, exact: float, size: float) -> None:
    if not abs(found - exact) <= _CLOSE * size:
        raise RuntimeError(
            f"the Fréchet distance of {what} should be {exact:.9g} and came out as {found:.9g}: the linear "
            "algebra of this machine (numpy's LAPACK) is at fault, and no score is given"
        )
