"""Variational bound of the diffusion chain, in bits/dim. Ho et al. 2020, Eq. 5; Nichol & Dhariwal 2021."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from dinit.diffusion import Denoised, Denoiser, RunContext, Scales
from dinit.diffusion.condition import SupportsNormal
from dinit.samplers.noise import NoiseSource
from dinit.samplers.ode.ddim import transition_variance
from dinit.samplers.points import GridLike, sampling_points
from dinit.samplers.sde.ddpm import Variance, check_variance, posterior_mean_of_x_s


@dataclass(frozen=True)
class VariationalBound:
    """An upper bound on -log2 p(x) / D of 256-level data, and its terms, all float64 in bits/dim.

    Attributes:
        total: (B,), the sum of the prior and the terms.
        prior: (B,), the divergence at the noisiest time.
        terms: (B, N), one a time from the noisiest to the cleanest; the last is the decoder's.
        x0_mse: (B, N), mean squared error of the network's x0 at each time.
        eps_mse: (B, N), that of its eps.
    """

    total: Tensor
    prior: Tensor
    terms: Tensor
    x0_mse: Tensor
    eps_mse: Tensor


def variational_bound(
    denoiser: Denoiser,
    x: Tensor,
    steps: int | None = None,
    *,
    labels: Tensor | Sequence[int] | None = None,
    grid: GridLike | None = None,
    variance: Variance = "fixed-small",
    noise_source: SupportsNormal | None = None,
    seed: int | Sequence[int] = 0,
) -> VariationalBound:
    """The variational bound of images, by one draw for each time. Ho et al. 2020, Eq. 5; arXiv:2006.11239.

    The chain runs through the grid's times and ends at clean data.

    Args:
        denoiser: A network read as a posterior mean, or a guidance around one.
        x: (B, C, H, W), images of 256 levels in [-1, 1], not dequantised.
        steps: The number of times, at least 2; None where the grid fixes it.
        labels: (B,) class labels; None for the denoiser's own, or null.
        grid: A TimeGrid, a registered name or mapping, or decreasing times in [0, 1]; None for the process's usual
            grid.
        variance: Of the chain's steps, as for DDPM. At the last, 'fixed-small' and 'fixed-large' are both the
            posterior variance of the step before, and so is the lower bound of 'learned-range', whose own is 0.
        noise_source: Of the draws, number i of the stream 'step' for the i-th time; None for
            `NoiseSource.from_seed(seed)`.
        seed: Of the noise source, where none is given: one seed, or one an image.

    Returns:
        The bound and its terms.

    Raises:
        ValueError: Fewer than two times; an unknown variance, or a learned one that the network does not have; a
            grid that `Sampler.iterate` would refuse.
    """
    check_variance(variance, denoiser)
    points = sampling_points(denoiser, steps, grid)
    if len(points) < 2:
        raise ValueError("the variational bound needs two times at least, got one")
    source: SupportsNormal = noise_source or NoiseSource.from_seed(seed, x.shape[0])
    run = RunContext(noise_source=source, steps=len(points))
    cond = denoiser.condition(labels, x.shape[0], x.device).in_run(run)
    clean = denoiser.process.scales(0.0)
    if clean.floats.sigma > 0:  # processes that stop short of clean data: the chain's end is x itself
        zero = torch.zeros_like(clean.sigma)
        clean = replace(clean, sigma=zero)
    columns = []
    for i, (t, s) in enumerate(pairwise([*points, clean])):
        eps = source.normal("step", i, x)
        with torch.no_grad():
            d = denoiser(t.alpha * x + t.sigma * eps, t, cond.at_step(i))
        mean = posterior_mean_of_x_s(d, t, s)
        if i < len(points) - 1:
            log_variance = _log_variance(d, t, s, variance, posterior_variance(t, s))
            right = posterior_mean_of_x_s(replace(d, x0=x), t, s)
            term = normal_kl(right, posterior_variance(t, s).log(), mean, log_variance)
        else:
            before = points[-2]
            decoder = "fixed-small" if variance == "fixed-large" else variance  # one table begins as the other
            log_variance = _log_variance(d, t, s, decoder, posterior_variance(before, t))
            term = -discretised_log_prob(x, mean, (log_variance / 2).exp())
        columns.append((bits(term), _mean((d.x0 - x) ** 2), _mean((d.eps - eps) ** 2)))
    terms, x0_mse, eps_mse = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
    first = points[0]
    std = denoiser.process.prior_std(first)
    prior = bits(normal_kl(first.alpha * x, 2 * first.sigma.log(), torch.zeros_like(x), 2 * std.log()))
    return VariationalBound(prior + terms.sum(1), prior, terms, x0_mse, eps_mse)


def posterior_variance(t: Scales, s: Scales) -> Tensor:
    """Variance of x_s given x_t and x0, for s < t. Ho et al. 2020, Eq. 7, for any path."""
    return transition_variance(t, s) * (s.sigma / t.sigma) ** 2


def _log_variance(d: Denoised, t: Scales, s: Scales, variance: Variance, lower: Tensor) -> Tensor:
    """log of the chain's variance of x_s given x_t, between `lower` and that of x_t given x_s."""
    upper = transition_variance(t, s)
    if variance.startswith("learned"):
        assert d.variance_fraction is not None, "checked before the first evaluation"
        if variance == "learned":  # log of the variance itself, in channels that hold 2 fraction - 1
            return 2 * d.variance_fraction - 1
        return d.variance_fraction * upper.log() + (1 - d.variance_fraction) * lower.log()
    return (lower if variance == "fixed-small" else upper).log()


def normal_kl(mean: Tensor, log_variance: Tensor, mean2: Tensor, log_variance2: Tensor) -> Tensor:
    """KL of N(mean, exp log_variance) to N(mean2, exp log_variance2) in every pixel, nats."""
    gap = log_variance2 - log_variance
    return (gap - 1 + (-gap).exp() + (mean - mean2) ** 2 * (-log_variance2).exp()) / 2


def discretised_log_prob(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log of a Gaussian's mass in the bin of each pixel of x, 256 levels in [-1, 1], nats. Ho et al. 2020, Eq. 13.

    The bins of the darkest and lightest level reach to infinity. The normal CDF is the tanh approximation of Page
    1977 that published bounds are computed with, within 2e-4 of the CDF itself.
    """
    above, below = (_approximate_cdf((x - mean + side / 255) / std) for side in (1, -1))
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1 - below, above - below))
    return mass.clamp(min=1e-12).log()


def _approximate_cdf(z: Tensor) -> Tensor:
    return (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2


def bits(nats: Tensor) -> Tensor:
    """The mean over pixels in bits, (B,) float64."""
    return _mean(nats) / math.log(2)


def _mean(x: Tensor) -> Tensor:
    return x.double().flatten(1).mean(1)
