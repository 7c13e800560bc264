"""Spacing of times between the two ends of a run, in log-SNR."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dinit.diffusion import Process


def line(start: float | Tensor, end: float | Tensor, count: int) -> Tensor:
    """(count,) equally spaced values, both ends exact; one value is the start."""
    start, end = torch.as_tensor(start, dtype=torch.float64), torch.as_tensor(end, dtype=torch.float64)
    u = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
    return torch.where(u == 1, end, start + (end - start) * u)


def between_log_snrs(
    process: Process,
    steps: int,
    t_min: float,
    t_max: float,
    first: float,
    spacing: Callable[[Tensor, Tensor, int], Tensor],
) -> Tensor:
    """Times whose log-SNR is spaced by a function of the log-SNRs at both ends.

    Args:
        process: The path.
        steps: The number of times.
        t_min: The last time.
        t_max: The first time.
        first: Where alpha is 0 at t_max, log-SNR is -inf there: t_max is followed by this time (or by t_max, if
            that is less), from which the spacing starts.
        spacing: (log-SNR of the clean end, of the noisy end, count) to (count,) log-SNRs, noisy to clean.

    Returns:
        (steps,) float64, decreasing, both ends exact.
    """
    noiseless = float(process.scales(t_max).alpha) == 0
    start = min(t_max, first) if noiseless else t_max
    count = steps - 1 if noiseless else steps
    ends = process.log_snr(torch.tensor([start, t_min], dtype=torch.float64))
    times = process.time_of(spacing(ends[1], ends[0], count)) if count else torch.empty(0, dtype=torch.float64)
    if count:
        times[0] = start
    if count > 1:
        times[-1] = t_min
    return torch.cat([torch.tensor([t_max], dtype=torch.float64), times]) if noiseless else times


def by_fraction(
    process: Process, steps: int, t_min: float, t_max: float, fraction: Callable[[Tensor], Tensor]
) -> Tensor:
    """Times whose log-SNR has gone fraction(u) of its way at even u in [0, 1]; fraction rises from 0 to 1."""

    def along(clean: Tensor, noisy: Tensor, count: int) -> Tensor:
        u = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
        return noisy + (clean - noisy) * fraction(u)

    return between_log_snrs(process, steps, t_min, t_max, 0.999, along)
