"""Time grids that are even in a power of t: uniform and quadratic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.diffusion import Process
from dinit.samplers.grids.base import GRIDS, TimeGrid
from dinit.samplers.grids.spacing import line


@GRIDS.register("uniform")
@dataclass(frozen=True)
class Uniform(TimeGrid):
    """Equally spaced in t from t_max down to 0, which is left out where it is noise-free.

    Args:
        last: The last time, in (0, 1); SiT's SDE has 0.04. None spaces the times down to 0.

    Raises:
        ValueError: last outside (0, 1); from `times`, a last time that is not below t_max.
    """

    last: float | None = None

    def __post_init__(self) -> None:
        if self.last is not None and not 0 < self.last < 1:
            raise ValueError(f"last, the grid's last time, must be in (0, 1), got {self.last}")

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        if self.last is not None:
            if self.last >= t_max:
                raise ValueError(f"last = {self.last}, the grid's last time, must be below t_max = {t_max}")
            return line(t_max, self.last, steps)
        if process.ends[0].sigma > 0:
            return line(t_max, t_min, steps)
        return t_max * (1 - torch.arange(steps, dtype=torch.float64) / steps)


@GRIDS.register("quadratic")
@dataclass(frozen=True)
class Quadratic(TimeGrid):
    """sqrt(t) equally spaced from t_max to t_min: more steps near the data. Song et al. 2021 (DDIM).

    Source: arXiv:2010.02502.
    """

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        times = torch.linspace(math.sqrt(t_max), math.sqrt(t_min), steps, dtype=torch.float64) ** 2
        times[-1], times[0] = t_min, t_max  # exactly; one time alone is the first
        return times
