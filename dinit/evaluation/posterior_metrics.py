"""Scores of samples of p(x | y) by the exact posterior: moments, weights, sliced Wasserstein, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from dinit.models import GaussianMixture

DIRECTIONS = 128
REFERENCE = 16  # exact samples for each sample in the sliced distance, so that their own noise hardly counts
CALIBRATION_DIRECTIONS = 16
BINS = 8
DIVERGED = 1e6


@dataclass(frozen=True)
class PosteriorScores:
    """What a set of samples of p(x | y) is, next to the exact posterior. NaN where a sample is not finite.

    Whitened coordinates are those in which the exact posterior has covariance 1; directions in which it has none
    are left out.

    Attributes:
        mean_err: Length of the error of the mean, over the root of the posterior's total variance.
        mean_err_white: Root mean square error of the mean in whitened coordinates.
        trace_ratio: Total variance over the posterior's.
        white_trace: Mean eigenvalue of the whitened covariance: every direction counts alike.
        white_lmax: Its largest eigenvalue; of few exact samples it is above 1.
        weight_err: Half the L1 distance of the mean responsibilities to the posterior's weights, in [0, 1].
        sw2: Sliced 2-Wasserstein distance to 16 times as many exact samples, in units of the root mean variance of
            the posterior. 256 exact samples have 0.10 to 0.14.
        sw2_white: The same in whitened coordinates.
        data: Root mean square of (A x - y) / sigma_y; of A x - y where sigma_y is 0.
        data_exact: What the exact posterior has for `data`.
        finite: 1; 0 where a value is not finite or above 10^6.
    """

    mean_err: float
    mean_err_white: float
    trace_ratio: float
    white_trace: float
    white_lmax: float
    weight_err: float
    sw2: float
    sw2_white: float
    data: float
    data_exact: float
    finite: float

    @staticmethod
    def average(scores: Sequence[PosteriorScores]) -> PosteriorScores:
        """The mean of each score.

        Args:
            scores: Of several measurements, at least one.
        """
        names = [field.name for field in fields(PosteriorScores)]
        return PosteriorScores(**{name: sum(getattr(one, name) for one in scores) / len(scores) for name in names})


def posterior_scores(
    samples: Tensor, posterior: GaussianMixture, A: Tensor, y: Tensor, noise_std: float, seed: int = 0
) -> PosteriorScores:
    """Scores of samples for one measurement y = A x + noise_std n.

    Args:
        samples: (N, ...), at least 2.
        posterior: The exact one.
        A: (m, n).
        y: m numbers.
        noise_std: At least 0.
        seed: Of the directions and of the exact samples.
    """
    x = samples.double().flatten(1)
    covariance, mean = posterior.covariance, posterior.mean
    trace = covariance.trace()
    scale = noise_std or 1.0
    expected = (A @ mean - y.double().flatten()).square().sum() + (A @ covariance @ A.T).trace()
    data_exact = float((expected / len(A)).clamp_min(0).sqrt()) / scale
    if not bool(torch.isfinite(x).all()) or float(x.abs().max()) > DIVERGED:
        unknown = dict.fromkeys([field.name for field in fields(PosteriorScores)], float("nan"))
        return PosteriorScores(**{**unknown, "data_exact": data_exact, "finite": 0.0})
    generator = torch.Generator().manual_seed(seed)
    exact = posterior.sample(REFERENCE * len(x), generator).flatten(1)
    into = whitening(covariance)
    apart, white, white_exact = x.mean(0) - mean, (x - mean) @ into, (exact - mean) @ into
    spectrum = torch.linalg.eigvalsh(white.T.cov().reshape(white.shape[1], -1))
    weights = posterior.responsibilities(x).mean(0)
    return PosteriorScores(
        mean_err=float(apart.norm() / trace.sqrt()),
        mean_err_white=float((apart @ into).square().mean().sqrt()),
        trace_ratio=float(x.var(0).sum() / trace),
        white_trace=float(spectrum.mean()),
        white_lmax=float(spectrum.max()),
        weight_err=float((weights - posterior.weights).abs().sum() / 2),
        sw2=sliced_wasserstein(x, exact, generator) / float((trace / len(mean)).sqrt()),
        sw2_white=sliced_wasserstein(white, white_exact, generator),
        data=float((x @ A.T - y.double().flatten()).square().mean().sqrt()) / scale,
        data_exact=data_exact,
        finite=1.0,
    )


def whitening(covariance: Tensor) -> Tensor:
    """The matrix (n, r) that takes rows into coordinates of covariance 1, r = rank.

    Args:
        covariance: (n, n).
    """
    values, vectors = torch.linalg.eigh(covariance)
    kept = values > 1e-10 * values.max()
    return vectors[:, kept] / values[kept].sqrt()


def sliced_wasserstein(one: Tensor, other: Tensor, generator: torch.Generator) -> float:
    """Root mean square, over random directions, of the 2-Wasserstein distance between projections.

    Args:
        one: (N, n).
        other: (M, n), M a multiple of N.
        generator: Of the directions.
    """
    directions = torch.randn(one.shape[1], DIRECTIONS, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    first, second = ((directions.T @ points.T).sort(-1)[0] for points in (one, other))
    return float((first.repeat_interleave(len(other) // len(one), -1) - second).square().mean().sqrt())


@dataclass(frozen=True)
class Calibration:
    """Ranks of the true images among samples, over measurements and random whitened directions.

    Attributes:
        chi2: Mean over directions of chi-square per degree of freedom of the ranks; 1 where they are uniform.
        spread: 12 times the mean of (rank - 1/2)^2: above 1 for samples too narrow or shifted, below 1 for samples
            too wide.
    """

    chi2: float
    spread: float


def posterior_calibration(
    samples: Tensor, truth: Tensor, posteriors: GaussianMixture, seed: int = 0
) -> Calibration:
    """Calibration of a sampler over measurements of images that were drawn from the prior.

    Args:
        samples: (Y, S, ...), S for each measurement; S + 1 a multiple of 8.
        truth: (Y, ...), the images behind the measurements.
        posteriors: The exact ones, Y mixtures.
        seed: Of the directions.

    Raises:
        ValueError: S + 1 is no multiple of 8.
    """
    count = samples.shape[1] + 1
    if count % BINS:
        raise ValueError(f"the number of samples plus 1 must be a multiple of {BINS}, got {count - 1} samples")
    x, true = samples.double().flatten(2), truth.double().flatten(1)
    if not bool(torch.isfinite(x).all()):
        return Calibration(float("nan"), float("nan"))
    generator = torch.Generator().manual_seed(seed)
    ranks = []
    for one, image, covariance in zip(x, true, posteriors.covariance, strict=True):
        into = whitening(covariance)
        directions = into @ torch.randn(
            into.shape[1], CALIBRATION_DIRECTIONS, generator=generator, dtype=torch.float64
        )
        ranks.append((one @ directions < image @ directions).sum(0))
    found = torch.stack(ranks)  # (Y, directions)
    observed = torch.nn.functional.one_hot(found * BINS // count, BINS).sum(0).double()
    expected = len(found) / BINS
    chi2 = ((observed - expected) ** 2 / expected).sum(1) / (BINS - 1)
    spread = 12 * ((found.double() + 0.5) / count - 0.5).square().mean()
    return Calibration(float(chi2.mean()), float(spread))
