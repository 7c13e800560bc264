"""More time grids: in the noise level, in t, and published tables. grids.py has the usual ones and the contract."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dinit.diffusion import Process
from dinit.diffusion.continuous import VP
from dinit.registry import suggest
from dinit.samplers.grids.base import GRIDS, TimeGrid, Times, spaced

# Sabour et al. 2024, noise levels found for 10 steps of three models.
ALIGNED = {
    "sd1.5": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


@GRIDS.register("exponential", special_case_of="log-snr")
@dataclass(frozen=True)
class Exponential(TimeGrid):
    """sigma / alpha in geometric progression: k-diffusion's exponential, which is 'log-snr' by its other name."""

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return _by_fraction(process, steps, t_min, t_max, lambda u: u)


@GRIDS.register("polyexponential")
@dataclass(frozen=True)
class Polyexponential(TimeGrid):
    """log(sigma / alpha) falls as (1 - u)^rho with u even in [0, 1]: k-diffusion. rho: positive, 1 is exponential.

    Above 1 it crowds the last, clean levels; below 1 the noisy ones.
    """

    rho: float = 1.5

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"rho must be positive, got {self.rho}")

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return _by_fraction(process, steps, t_min, t_max, lambda u: 1 - (1 - u) ** self.rho)


@GRIDS.register("quadratic")
@dataclass(frozen=True)
class Quadratic(TimeGrid):
    """sqrt(t) equally spaced from t_max to t_min: more steps near the data. Song et al. 2021 (DDIM)."""

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        times = torch.linspace(math.sqrt(t_max), math.sqrt(t_min), steps, dtype=torch.float64) ** 2
        times[-1], times[0] = t_min, t_max  # exactly; one time alone is the first
        return times


@GRIDS.register("vp")
@dataclass(frozen=True)
class VPInSigma(TimeGrid):
    """The noise levels of a VP process at even times, on any process. Karras et al. 2022, Table 1, first column.

    beta_d, beta_min: of the VP process, beta(t) = beta_min + t beta_d. eps: its last time. In log sigma / alpha,
    the levels are stretched so that their ends are those of the process that runs.
    """

    beta_d: float = 19.9
    beta_min: float = 0.1
    eps: float = 1e-3

    def __post_init__(self) -> None:
        if not (self.beta_d >= 0 and self.beta_min > 0 and 0 < self.eps < 1):
            raise ValueError(
                f"the VP grid needs beta_d >= 0, beta_min > 0 and eps in (0, 1), got {self.beta_d}, "
                f"{self.beta_min} and {self.eps}"
            )

    def levels(self, steps: int) -> Tensor:
        """(steps,) noise levels sigma / alpha of the VP process itself."""
        vp = VP(self.beta_min, self.beta_min + self.beta_d)
        return vp.scales(torch.linspace(1, self.eps, steps, dtype=torch.float64)).noise_level

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return _like_levels(process, steps, t_min, t_max, self.levels)


@GRIDS.register("align-your-steps", aliases=("ays",))
@dataclass(frozen=True)
class AlignYourSteps(TimeGrid):
    """Noise levels optimised for Stable Diffusion. Sabour et al. 2024 (Align Your Steps).

    table: 'sd1.5', 'sdxl' or 'svd'. For other numbers than its 11 levels the table is interpolated linearly in
    log sigma, as its authors do. In log sigma / alpha, the levels are stretched so that their ends are those of the
    process that runs: for the model that they were found for, hardly at all.
    """

    table: Literal["sd1.5", "sdxl", "svd"] = "sd1.5"

    def __post_init__(self) -> None:
        if self.table not in ALIGNED:
            raise ValueError(f"unknown table {self.table!r}{suggest(str(self.table), sorted(ALIGNED))}")

    def levels(self, steps: int) -> Tensor:
        """(steps,) noise levels of the table; steps = 11 gives the published ones."""
        table = torch.tensor(ALIGNED[self.table], dtype=torch.float64)
        return _resampled(table.log(), steps).exp()

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return _like_levels(process, steps, t_min, t_max, self.levels)


@GRIDS.register("searched")
@dataclass(frozen=True)
class Searched(TimeGrid):
    """Times that `timestep_search.search_timesteps` found and cached. Li et al. 2023 (AutoDiffusion).

    path: of the cache, a JSON file. FileNotFoundError or ValueError where it is not such a file.
    """

    path: str

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The times, decreasing."""
        found = json.loads(Path(self.path).read_text())
        if not (isinstance(found, dict) and isinstance(found.get("times"), list)):
            raise ValueError(f"{self.path} holds no searched times: make it with search_timesteps(..., cache=path)")
        return tuple(float(t) for t in found["times"])

    @property
    def length(self) -> int:
        return len(self.values)

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return Times(self.values).times(process, steps, t_min, t_max)


def _by_fraction(
    process: Process, steps: int, t_min: float, t_max: float, fraction: Callable[[Tensor], Tensor]
) -> Tensor:
    """Times whose log-SNR has gone fraction(u) of its way at even u in [0, 1]; fraction rises from 0 to 1."""

    def along(clean: Tensor, noisy: Tensor, count: int) -> Tensor:
        u = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
        return noisy + (clean - noisy) * fraction(u)

    return spaced(process, steps, t_min, t_max, 0.999, along)


def _like_levels(
    process: Process, steps: int, t_min: float, t_max: float, levels: Callable[[int], Tensor]
) -> Tensor:
    """Times whose log noise levels divide the process's range as those of levels(count) divide theirs."""

    def fraction(u: Tensor) -> Tensor:
        if len(u) < 2:
            return torch.zeros_like(u)
        logs = levels(len(u)).log()
        return (logs - logs[0]) / (logs[-1] - logs[0])

    return _by_fraction(process, steps, t_min, t_max, fraction)


def _resampled(values: Tensor, count: int) -> Tensor:
    """(count,) values at even places of the line through `values`, both ends included; one value is the first."""
    place = torch.arange(count, dtype=torch.float64) * (len(values) - 1) / max(count - 1, 1)
    left = place.floor().long().clamp(max=len(values) - 2)
    return torch.lerp(values[left], values[left + 1], place - left)
