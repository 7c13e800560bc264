"""Rehearsal of a run on Gaussian data, whose end is known: a solver that the grid does not suit is warned of.

A solver whose steps are too long for its variable gives no error, but flat or harsh images. On Gaussian data the
exact standard deviation at the end of a run is known, and the run costs milliseconds.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Process, Scales
from dinit.samplers.points import End

if TYPE_CHECKING:  # `Sampler.iterate` imports this module
    from dinit.samplers.base import Run, Sampler

DATA_STD = 0.3  # of images in [-1, 1], about
_VARIANCE = DATA_STD**2
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
        scales = self.scales(t).like(x_t)
        k: Any = scales.factors
        gain = k.alpha * _VARIANCE / (k.alpha * k.alpha * _VARIANCE + k.sigma * k.sigma)
        return Denoised.of_mean(x_t, gain * x_t, scales)


def warn_of_spread(run: Run, end: End, create: Callable[[str], Sampler], own_state: bool = True) -> None:
    """A UserWarning where the sampler's own error on Gaussian data is above TOLERANCE, with a sampler that is not.

    A run of fewer than FEWEST times is warned of where it diverges.

    Args:
        run: What would run.
        end: Of the run.
        create: From a registered name to the sampler.
        own_state: Whether the sampler's `init` made the run's first state.
    """
    sampler, denoiser, points = run.sampler, run.denoiser, run.points
    adaptive = sampler.claims().cost_depends_on == "state"
    if isinstance(denoiser, _Gaussian) or adaptive or not 2 <= len(points) <= MOST:
        return
    times = tuple(k.floats.time for k in points)
    try:
        found = spread(sampler, denoiser.process, times, end, run if own_state else None)
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


_FOUND: dict[object, float] = {}


def forget() -> None:
    """Rehearse every run again."""
    _FOUND.clear()


def spread(sampler: Sampler, process: Process, times: tuple[float, ...], end: End, run: Run | None = None) -> float:
    """Standard deviation at the end of a run on Gaussian data, over what the exact solution has there.

    Args:
        sampler: Of the run.
        process: Of the data's noise.
        times: Of the run, decreasing.
        end: 'posterior-mean', or another, which returns the state at the last time.
        run: This run of the sampler, planned for another denoiser of the process; None: it is planned here.

    Returns:
        1 for an exact solver.
    """
    key = (sampler, process, times, end)
    if key not in _FOUND:
        if len(_FOUND) >= 512:
            _FOUND.clear()
        _FOUND[key] = _spread(sampler, process, times, end, run)
    return _FOUND[key]


def _spread(sampler: Sampler, process: Process, times: tuple[float, ...], end: End, run: Run | None) -> float:
    denoiser = _Gaussian(process)
    first, last = process.scales(torch.tensor([times[0], times[-1]], dtype=torch.float64)).unbind()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = None
        if run is not None:
            sampler.check(denoiser, run.points)
            found = _of_coefficients(run, denoiser, _marginal_std(first))
        if found is None:
            found = _of_samples(sampler, denoiser, times, end, _marginal_std(first))
    exact = _marginal_std(last)
    if end == "posterior-mean":
        exact = last.floats.alpha * DATA_STD**2 / exact
    return found / exact


def _of_coefficients(run: Run, denoiser: Denoiser, std: float) -> float | None:
    """The standard deviation at the end of a linear run, on plain numbers; None where the sampler needs tensors.

    Each number of the state is the coefficient of one of the independent normal variables that the run begins with
    and draws. The last is what the state is where these variables have some fixed values, which shows whether the
    run is linear.
    """
    draws = run.sampler.claims().draws_per_step
    count = 1 + draws * run.total
    values = np.cos(2.4 * np.arange(count)) + 0.1

    class Units:
        def normal(self, stream: str, number: int, like: Any) -> Any:
            unit = np.zeros(count + 1)
            unit[1 + number], unit[-1] = 1, values[1 + number]
            return unit

    x: Any = std
    if draws:
        x = np.zeros(count + 1)
        x[0], x[-1] = std, std * values[0]
    try:
        x = run.last_state(x, denoiser, Units())
        if not draws:
            return abs(x) if isinstance(x, float) else None
        linear = isinstance(x, np.ndarray) and abs(x[-1] - x[:-1] @ values) <= 1e-6 * np.abs(x[:-1]).sum()
        return math.sqrt(x[:-1] @ x[:-1]) if linear else None
    except (TypeError, AttributeError, ArithmeticError, IndexError, ValueError):
        return None  # what fails on tensors too does so there


def _of_samples(sampler: Sampler, denoiser: Denoiser, times: tuple[float, ...], end: End, std: float) -> float:
    """The standard deviation at the end of a run, of samples."""
    if sampler.stochastic:
        even = (torch.arange(1024, dtype=torch.float64) + 0.5) / 1024
        draws = torch.special.ndtri(even)[torch.randperm(1024, generator=torch.Generator().manual_seed(0))]
        start = draws.reshape(16, 1, 8, 8)
    else:
        start = torch.tensor([-1.0, 1.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    done = sampler.sample(
        denoiser,
        start,
        grid=torch.tensor(times, dtype=torch.float64),
        initial_state=start * std,
        end=end if end == "posterior-mean" else "state",
    )
    return float(done.std(unbiased=False))


def _marginal_std(k: Scales) -> float:
    return math.sqrt(k.floats.alpha**2 * DATA_STD**2 + k.floats.sigma**2)
