"""Times of a run, with their scales: computed and checked once, before the first step."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dinit.arguments import shown
from dinit.diffusion import Denoiser, Scales
from dinit.registry import suggest
from dinit.samplers.grids.base import GRIDS, TimeGrid
from dinit.samplers.grids.default import default_grid

End = Literal["posterior-mean", "state", "clean"]
GridLike = TimeGrid | Tensor | Sequence[float] | str | Mapping[str, Any]


def sampling_points(
    denoiser: Denoiser, steps: int | None, grid: GridLike | None, end: End = "posterior-mean"
) -> list[Scales]:
    """The scales of every time of a run, noisiest first, with their Python floats read.

    Args:
        denoiser: Its process and its limits t_min and t_max.
        steps: Sampling steps, at least 1; None where the grid fixes their number.
        grid: See `sampling_times`.
        end: 'posterior-mean' leaves out a last time with sigma = 0, where no network is evaluated; 'state' keeps
            it; 'clean' adds t = 0 where the times do not end with it.

    Returns:
        One Scales a time, 0-dimensional float64.

    Raises:
        ValueError: An unknown `end`; fewer than two times with end='state'; end='clean' on a process with noise at
            t = 0; and as `sampling_times`.
    """
    check_end(end)
    times = sampling_times(denoiser, steps, grid)
    if end == "clean" and float(times[-1]) > 0:
        times = torch.cat([times, times.new_zeros(1)])
    if end == "clean" and denoiser.process.ends[0].sigma > 0:
        raise ValueError(
            f"end = 'clean' steps to sigma = 0 at t = 0, and {denoiser.process} has noise there: use "
            "'posterior-mean', or 'state' for x at the last time"
        )
    if end == "state" and len(times) < 2:
        raise ValueError("end = 'state' takes a step between two times at least, got one time")
    points = denoiser.process.scales(times).unbind()
    for k in points:
        _ = k.floats  # the last reading of a schedule back to Python: the loop does none
    if end == "posterior-mean" and len(points) > 1 and points[-1].floats.sigma == 0:
        points = points[:-1]
    if end == "posterior-mean":
        _warn_of_noisy_end(points)
    return points


def sampling_times(denoiser: Denoiser, steps: int | None, grid: GridLike | None) -> Tensor:
    """The times of a run, from a grid or as they are given.

    Args:
        denoiser: Its process and its limits t_min and t_max.
        steps: Sampling steps, at least 1; None where the grid fixes their number.
        grid: A TimeGrid, a registered name or mapping, or decreasing times; None is the process's usual grid.

    Returns:
        (steps,) float64 on the CPU, decreasing, in [0, t_max].

    Raises:
        ValueError: steps < 1, or not the number of given times; no number of steps at all; times that do not
            decrease or lie outside [0, t_max]; an unknown grid.
    """
    if isinstance(grid, Sequence | np.ndarray) and not isinstance(grid, str):
        grid = times_of(grid)
    if isinstance(grid, Tensor):
        times = grid.detach().double().cpu()
        if steps is not None and steps != len(times):
            raise ValueError(f"steps = {steps} contradicts a grid of {len(times)} times; leave steps out")
    else:
        chosen = default_grid(denoiser.process) if grid is None else GRIDS.create(grid)
        steps = chosen.length if steps is None else steps
        if steps is None:
            raise ValueError("give the number of steps, or a grid of times")
        steps = checked_steps(steps)
        times = chosen.times(denoiser.process, steps, denoiser.t_min, denoiser.t_max)
    values = times.tolist()
    if times.ndim != 1 or not values or not all(later < t for t, later in pairwise(values)):
        raise ValueError(f"a grid needs decreasing times, got {values}")
    if values[-1] < 0 or values[0] > denoiser.t_max:
        raise ValueError(f"times must lie in [0, {denoiser.t_max}], got {values}")
    return times


def number_of_times(grid: GridLike | None) -> int | None:
    """How many times a grid fixes; None where that is the caller's choice."""
    if isinstance(grid, str | Mapping):
        grid = GRIDS.create(grid)
    if isinstance(grid, TimeGrid):
        return grid.length
    return None if grid is None or not hasattr(grid, "__len__") else len(grid)


def times_of(values: object) -> Tensor:
    """Times that are given one by one, as a float64 tensor. ValueError for what is no list of numbers."""
    try:
        times = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"grid must be decreasing times, a name or a TimeGrid, got {shown(values)}") from error
    return times


def check_end(end: object) -> None:
    """ValueError for another end of a run than those of `End`."""
    if end not in get_args(End):
        known = "'clean', 'posterior-mean' or 'state'"
        raise ValueError(f"end must be {known}, got {end!r}{suggest(str(end), list(get_args(End)))}")


def checked_steps(steps: object) -> int:
    """The number of sampling steps. ValueError unless it is a whole number of at least 1."""
    whole = not isinstance(steps, bool | Tensor) and hasattr(steps, "__index__")
    if not whole or operator.index(steps) < 1:  # type: ignore[arg-type]
        advice = "; times go into grid=" if isinstance(steps, Tensor | list | tuple) else ""
        raise ValueError(f"steps must be a whole number, at least 1; got {shown(steps)}{advice}")
    return operator.index(steps)  # type: ignore[arg-type]


def check_noisy_start(first: Scales) -> None:
    """ValueError where noise would start a run at a time of mostly image: a bad picture, and no error."""
    if first.floats.sigma < first.floats.alpha:
        raise ValueError(
            f"a run from pure noise cannot start at t = {first.floats.time:.3g}, where x_t is more image than "
            "noise: pass the state there as initial_state=, or a grid that starts near t = 1"
        )


class NoisyEndWarning(UserWarning):
    """A grid has too few times near the end: the images will be flat, whatever the solver."""


def _warn_of_noisy_end(points: list[Scales]) -> None:
    """Warns where no time, or one of ten and more, has less noise than signal: a flat picture, and no error."""
    if len(points) < 5:
        return
    late = points[-1].floats if len(points) < 10 else points[-2].floats
    if late.sigma > late.alpha:
        level = late.sigma / late.alpha if late.alpha else math.inf
        warnings.warn(
            f"near the end of {len(points)} times, at t = {late.time:.3g}, there is still "
            f"{level:.3g} times as much noise as signal: images will be flat. Take more steps, "
            'or a grid that spreads them over the noise points, such as grid="karras"',
            NoisyEndWarning,
            stacklevel=4,
        )
