"""Rehearsal of a run on Gaussian data, whose end is known: a solver that the grid does not suit is warned of.

A solver whose steps are too long for its variable gives no error, but flat or harsh images. On Gaussian data the
exact standard deviation at the end of a run is known, and the run costs milliseconds.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Process, Scales
from dinit.samplers.points import End

if TYPE_CHECKING:  # `Sampler.iterate` imports this module
    from dinit.samplers.base import Sampler

DATA_STD = 0.3  # of images in [-1, 1], about
TOLERANCE = 0.15  # of the standard deviation, relative
FEWEST, MOST = 18, 250  # times of a run: with fewer no first-order solver is exact, with more nearly all are
DIVERGED = 5.0  # times the standard deviation: so far off are few steps only where they diverge
INSTEAD = ("ddim", "dpmpp-2m", "heun", "edm-heun", "bdia-ddim")


class _Gaussian(Denoiser):
    """x0 ~ N(0, DATA_STD^2) in every pixel."""

    num_classes = 0

    def __init__(self, process: Process) -> None:
        self.process, self.t_min = process, process.t_min

    def embed(self, labels: Tensor) -> Tensor:
        return torch.zeros(len(labels), 1)

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        k = self.scales(t).like(x_t)
        return Denoised(x_t, k.alpha * DATA_STD**2 / (k.alpha**2 * DATA_STD**2 + k.sigma**2) * x_t, k)


def warn_of_spread(
    sampler: Sampler, denoiser: Denoiser, points: list[Scales], end: End, create: Callable[[str], Sampler]
) -> None:
    """A UserWarning where the sampler's own error on Gaussian data is above TOLERANCE, with a sampler that is not.

    A run of fewer than FEWEST times is warned of where it diverges.

    Args:
        sampler: What would run.
        denoiser: What would be sampled from; of it the process counts.
        points: Scales of every time of the run.
        end: Of the run.
        create: From a registered name to the sampler.
    """
    adaptive = sampler.claims().cost_depends_on == "state"
    if isinstance(denoiser, _Gaussian) or adaptive or not 2 <= len(points) <= MOST:
        return
    times = tuple(k.floats.time for k in points)
    try:
        found = spread(sampler, denoiser.process, times, end)
    except (TypeError, ValueError):  # options that do not hash; a network that has what the Gaussian has not
        return
    few = len(points) < FEWEST
    if found < DIVERGED if few else abs(found - 1) <= TOLERANCE:
        return
    better = next((name for name in INSTEAD if _suits(create(name), denoiser.process, times, end, few)), None)
    instead = "more steps" if better is None else f"more steps, or sampler {better!r}"
    warnings.warn(
        f"{sampler} with {len(points)} times on this grid is inexact: data of standard deviation {DATA_STD} would "
        f"come out with {found * DATA_STD:.2g}, the images too {'flat' if found < 1 else 'harsh'}. Take {instead}",
        UserWarning,
        stacklevel=4,
    )


def _suits(sampler: Sampler, process: Process, times: tuple[float, ...], end: End, few: bool) -> bool:
    try:
        return abs(spread(sampler, process, times, end) - 1) < (0.5 if few else TOLERANCE / 1.5)
    except ValueError:
        return False


@functools.lru_cache(maxsize=512)
def spread(sampler: Sampler, process: Process, times: tuple[float, ...], end: End) -> float:
    """Standard deviation at the end of a run on Gaussian data, over what the exact solution has there.

    Args:
        sampler: Of the run.
        process: Of the data's noise.
        times: Of the run, decreasing.
        end: 'posterior-mean', or another, which returns the state at the last time.

    Returns:
        1 for an exact solver.
    """
    denoiser = _Gaussian(process)
    grid = torch.tensor(times, dtype=torch.float64)
    first, last = process.scales(grid[0]), process.scales(grid[-1])
    if sampler.stochastic:
        even = (torch.arange(1024, dtype=torch.float64) + 0.5) / 1024
        draws = torch.special.ndtri(even)[torch.randperm(1024, generator=torch.Generator().manual_seed(0))]
        start = draws.reshape(16, 1, 8, 8)
    else:
        start = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = sampler.sample(
            denoiser,
            start,
            grid=grid,
            initial_state=start * _marginal_std(first),
            end=end if end == "posterior-mean" else "state",
        )
    exact = _marginal_std(last)
    if end == "posterior-mean":
        exact = last.alpha * DATA_STD**2 / exact
    return float(done.std(unbiased=False) / exact)


def _marginal_std(k: Scales) -> Tensor:
    return (k.alpha**2 * DATA_STD**2 + k.sigma**2).sqrt()
