"""Where the steps fall. A grid gives decreasing float64 times on the CPU; every grid works with every sampler.

`times(process, steps)` returns `steps` times at which the network is asked, all with sigma > 0. The driver takes
steps - 1 solver steps between them and returns the posterior mean at the last, so that a solver of one network
evaluation a step costs `steps` evaluations in all, as users of diffusers expect.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dinit.diffusion import Process
from dinit.registry import Registry

GRIDS: Registry[type[TimeGrid]] = Registry("grid", "dinit.samplers.grids")


class TimeGrid(ABC):
    """A rule for placing times. Subclasses are frozen dataclasses."""

    @property
    def length(self) -> int | None:
        """The number of times where the grid fixes it; None where it is the caller's choice."""
        return None

    @abstractmethod
    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        """(steps,) float64 on the CPU, decreasing, within [t_min, t_max]; steps >= 1."""


def default_grid(process: Process) -> TimeGrid:
    """Karras's where alpha is constant (VE, EDM: sigma spans decades), uniform in t elsewhere."""
    return Karras() if float(process.scales(1.0).alpha) == 1.0 else Uniform()


def noise_level_grid(process: Process) -> TimeGrid:
    """The grid for solvers that step in sigma / alpha, where none is named: the usual one, or even log-SNR.

    Where the noise level starts finite and huge (20,000 on the cosine chain), even steps in t leave nearly all of
    it to the first; where it is infinite, these solvers take that step along the straight path.
    """
    first = float(process.scales(1.0).alpha)
    return LogSNR() if 0.0 < first < 1.0 else default_grid(process)


@GRIDS.register("uniform")
@dataclass(frozen=True)
class Uniform(TimeGrid):
    """Equally spaced in t from t_max down to 0, which is left out where it is noise-free."""

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        if float(process.scales(0.0).sigma) > 0:
            return _line(t_max, t_min, steps)
        return t_max * (1 - torch.arange(steps, dtype=torch.float64) / steps)


@GRIDS.register("log-snr")
@dataclass(frozen=True)
class LogSNR(TimeGrid):
    """Equally spaced in log-SNR. Lu et al. 2022 (DPM-Solver).

    Where alpha is 0 at t_max, log-SNR has no first value and `first` (below 1) is where spacing starts;
    the trajectory still starts at t_max.
    """

    first: float = 0.999

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return spaced(process, steps, t_min, t_max, self.first, lambda lo, hi, n: _line(hi, lo, n))


@GRIDS.register("karras")
@dataclass(frozen=True)
class Karras(TimeGrid):
    """sigma / alpha equally spaced in its rho-th root. Karras et al. 2022, Eq. 5. rho: positive."""

    rho: float = 7.0
    first: float = 0.999

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"rho must be positive, got {self.rho}")

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        def roots(low: Tensor, high: Tensor, count: int) -> Tensor:  # of log-SNR
            root = lambda log_snr: (-log_snr / (2 * self.rho)).exp()  # noqa: E731
            return -2 * self.rho * _line(root(high), root(low), count).log()

        return spaced(process, steps, t_min, t_max, self.first, roots)


@GRIDS.register(
    "timesteps", aliases={spacing: {"spacing": spacing} for spacing in ("trailing", "leading", "linspace")}
)
@dataclass(frozen=True)
class Timesteps(TimeGrid):
    """The level spacings of the discrete chain: Lin et al. 2023, Table 2.

    trailing: ends at the noisiest level. leading: starts at the cleanest. linspace: both ends. Levels i of the
    process's num_steps stand at t = (i + 1) / num_steps; offset is added to leading levels.
    """

    spacing: Literal["trailing", "leading", "linspace"] = "trailing"
    offset: int = 0

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        total = process.num_steps
        if steps > total:
            raise ValueError(f"{steps} steps do not fit in the {total} levels of {process}")
        if self.spacing == "trailing":
            levels = torch.arange(total, 0, -total / steps, dtype=torch.float64)[:steps].round() - 1
        elif self.spacing == "leading":
            levels = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (total // steps) + self.offset
        elif self.spacing == "linspace":
            levels = _line(total - 1, 0, steps).round()
        else:
            raise ValueError(f"spacing must be 'trailing', 'leading' or 'linspace', got {self.spacing!r}")
        return ((levels + 1) / total).clamp(t_min, t_max)


@GRIDS.register("times")
@dataclass(frozen=True)
class Times(TimeGrid):
    """Times given one by one: decreasing numbers in [0, 1], all but the last with sigma > 0."""

    values: tuple[float, ...]

    @property
    def length(self) -> int:
        return len(self.values)

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        if steps != len(self.values):
            raise ValueError(f"this grid has {len(self.values)} times, {steps} steps were asked for")
        return torch.tensor(self.values, dtype=torch.float64)


def _line(start: float | Tensor, end: float | Tensor, count: int) -> Tensor:
    """count equally spaced values with both ends exact; one value is the start."""
    start, end = torch.as_tensor(start, dtype=torch.float64), torch.as_tensor(end, dtype=torch.float64)
    u = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
    return torch.where(u == 1, end, start + (end - start) * u)


def spaced(process: Process, steps: int, t_min: float, t_max: float, first: float, spacing) -> Tensor:
    """Times whose log-SNR is spaced by `spacing(low end's, high end's log-SNR, count)`, both ends exact."""
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
