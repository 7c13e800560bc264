"""Fréchet distance, moments and neighbourhoods against closed forms and against torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from dinit.evaluation.metrics import frechet
from dinit.evaluation.metrics.frechet import factor, frechet_distance, self_test
from dinit.evaluation.metrics.gaussian import Gaussian, Moments, gaussian_of
from dinit.evaluation.metrics.manifold import inside

RNG = np.random.default_rng(0)


def random_gaussian(dim: int, rank: int | None = None) -> Gaussian:
    a = RNG.standard_normal((dim, rank or dim))
    return Gaussian(RNG.standard_normal(dim), a @ a.T)


def test_gaussians_with_shared_axes() -> None:
    # both diagonal in one basis: |m|² + Σ (√a - √b)²
    basis, _ = np.linalg.qr(RNG.standard_normal((30, 30)))
    a, b = RNG.uniform(0, 5, 30), RNG.uniform(0, 5, 30)
    a[:4], b[2:8] = 0, 0  # neither of full rank
    m = RNG.standard_normal(30)
    first, second = Gaussian(m, (basis * a) @ basis.T), Gaussian(np.zeros(30), (basis * b) @ basis.T)
    exact = m @ m + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert frechet_distance(first, second) == pytest.approx(exact, rel=1e-10)


def test_full_rank_pairs_agree_with_scipys_root_and_the_order_does_not_matter() -> None:
    a, b = random_gaussian(20), random_gaussian(20)
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    exact = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(exact, rel=1e-9)


def test_a_set_is_at_0_of_itself_even_with_fewer_images_than_features() -> None:
    for rows in (10, 500):
        x = RNG.standard_normal((rows, 60)) * np.geomspace(1e-3, 30, 60)
        own = gaussian_of(x)
        assert own.rank_deficient == (rows <= 60)
        assert abs(frechet_distance(own, own)) < 1e-10 * np.trace(own.covariance)
        # a general matrix root loses half of the digits there
        assert abs(frechet_distance(own, Gaussian(own.mean + 1e-4, own.covariance)) - 60e-8) < 1e-9


def test_the_same_numbers_as_torch_fidelity() -> None:
    x, y = torch.from_numpy(RNG.standard_normal((300, 16))), torch.from_numpy(RNG.standard_normal((200, 16)) + 0.3)
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(z) for z in (x, y)), verbose=False)
    ours = frechet_distance(gaussian_of(x.numpy()), gaussian_of(y.numpy()))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-8)
    found = inside(x.numpy(), y.numpy(), 3)
    theirs = prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=64, save_cpu_ram=True, verbose=False)
    assert float(found.samples.mean()) == pytest.approx(theirs["precision"], abs=1e-6)
    assert float(found.reference.mean()) == pytest.approx(theirs["recall"], abs=1e-6)


def test_neighbourhoods_of_points_on_a_line() -> None:
    # k = 1: each of 0, 1, 3 reaches to its nearest: 1, 1, 2. Samples at 2.0 (in of 1 and 3), -1.5 (in of none)
    reference, samples = np.array([[0.0], [1.0], [3.0]]), np.array([[2.0], [-1.5]])
    found = inside(samples, reference, 1)
    assert found.samples.tolist() == [True, False]
    # each sample reaches 3.5: 2.0 has all three, -1.5 the first two
    assert found.reference.tolist() == [True, True, True]
    assert inside(np.array([[2.0], [2.5]]), reference, 1).reference.tolist() == [False, False, True]
    with pytest.raises(ValueError, match="needs more images"):
        inside(samples, reference, 2)


def test_large_sets_go_by_products_with_the_same_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = RNG.standard_normal((90, 12)) + 50, RNG.standard_normal((70, 12)) + 50
    exact = inside(x, y, 3)
    monkeypatch.setattr("dinit.evaluation.metrics.manifold._EXACT", 0)
    monkeypatch.setattr("dinit.evaluation.metrics.manifold._ROWS", 32)
    fast = inside(x, y, 3)
    assert np.array_equal(exact.samples, fast.samples)
    assert np.array_equal(exact.reference, fast.reference)


def test_moments_in_pieces_are_those_of_the_whole() -> None:
    x = RNG.standard_normal((1001, 7)) + 1e6  # a mean that would eat the digits of a sum of squares
    whole = Gaussian(x.mean(0), np.cov(x, rowvar=False), 1001)
    moments = Moments()
    for start in range(0, 1001, 137):
        moments.update(x[start : start + 137])
    found = moments.gaussian()
    assert found.count == 1001
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(found.covariance, whole.covariance, rtol=1e-8, atol=1e-9)


def test_weights_count_images() -> None:
    x, times = RNG.standard_normal((50, 3)), RNG.integers(0, 4, 50)
    found, repeated = gaussian_of(x, times, piece=9), gaussian_of(np.repeat(x, times, axis=0))
    np.testing.assert_allclose(found.mean, repeated.mean, atol=1e-13)
    np.testing.assert_allclose(found.covariance, repeated.covariance, atol=1e-13)
    assert found.count == times.sum()


def test_what_is_no_statistics_is_refused() -> None:
    good = random_gaussian(3)
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_distance(good, random_gaussian(4))
    with pytest.raises(ValueError, match="eigenvalue below 0"):
        frechet_distance(good, Gaussian(np.zeros(3), np.diag([1.0, 1.0, -0.1])))
    with pytest.raises(ValueError, match="differs from its transpose"):
        factor(np.array([[1.0, 0.5], [0.2, 1.0]]))
    with pytest.raises(ValueError, match="NaN or infinity"):
        Gaussian(np.array([np.nan]), np.ones((1, 1)))
    with pytest.raises(ValueError, match="are needed, got"):
        Gaussian(np.zeros(3), np.eye(2))
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        gaussian_of(np.zeros((1, 3)))


def test_the_self_test_finds_a_broken_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    self_test.cache_clear()
    self_test()
    right = frechet.factor
    for wrong in (lambda c: right(c) * (1 + 1e-6), lambda c: right(c)[:, 1:], lambda c: right(c).T):
        monkeypatch.setattr(frechet, "factor", wrong)
        self_test.cache_clear()
        with pytest.raises(RuntimeError, match="no score is given"):
            self_test()
    self_test.cache_clear()
