"""Time grids of published noise levels, stretched to the range of the process: Align Your Steps, VP's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dinit.diffusion import Process
from dinit.diffusion.continuous import VP
from dinit.registry import suggest
from dinit.samplers.grids.base import GRIDS, TimeGrid
from dinit.samplers.grids.spacing import by_fraction

# Sabour et al. 2024, noise levels found for 10 steps of three models.
ALIGNED = {
    "sd1.5": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.00, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


@GRIDS.register("vp")
@dataclass(frozen=True)
class VPInSigma(TimeGrid):
    """The noise levels of a VP process at even times, on any process. Karras et al. 2022, Table 1, first column.

    In log(sigma / alpha), the noise levels are stretched so that their ends are those of the process that runs.
    Source: arXiv:2206.00364.

    Args:
        beta_d: Rise of the VP process's beta(t) = beta_min + t beta_d; at least 0.
        beta_min: beta(0) of the VP process, positive.
        eps: Last time of the VP process, in (0, 1).

    Raises:
        ValueError: a number outside its range.
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

    def noise_levels(self, steps: int) -> Tensor:
        """(steps,) noise levels sigma / alpha of the VP process itself."""
        vp = VP(self.beta_min, self.beta_min + self.beta_d)
        return vp.scales(torch.linspace(1, self.eps, steps, dtype=torch.float64)).noise_level

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return _stretched(process, steps, t_min, t_max, self.noise_levels)


@GRIDS.register("align-your-steps", aliases=("ays",))
@dataclass(frozen=True)
class AlignYourSteps(TimeGrid):
    """Noise levels optimised for Stable Diffusion. Sabour et al. 2024 (Align Your Steps).

    For other numbers than its 11 noise levels the table is interpolated linearly in log sigma, as its authors do.
    In log(sigma / alpha), the noise levels are stretched so that their ends are those of the process that runs: for
    the model that they were found for, hardly at all. Source: arXiv:2404.14507.

    Args:
        table: 'sd1.5', 'sdxl' or 'svd', the model that the noise levels were found for.

    Raises:
        ValueError: Another table.
    """

    table: Literal["sd1.5", "sdxl", "svd"] = "sd1.5"

    def __post_init__(self) -> None:
        if self.table not in ALIGNED:
            raise ValueError(f"unknown table {self.table!r}{suggest(str(self.table), sorted(ALIGNED))}")

    def noise_levels(self, steps: int) -> Tensor:
        """(steps,) noise levels of the table; steps = 11 gives the published ones."""
        table = torch.tensor(ALIGNED[self.table], dtype=torch.float64)
        return _resampled(table.log(), steps).exp()

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return _stretched(process, steps, t_min, t_max, self.noise_levels)


def _stretched(
    process: Process, steps: int, t_min: float, t_max: float, noise_levels: Callable[[int], Tensor]
) -> Tensor:
    """Times whose log noise levels divide the process's range as those of noise_levels(count) divide theirs."""

    def fraction(u: Tensor) -> Tensor:
        if len(u) < 2:
            return torch.zeros_like(u)
        logs = noise_levels(len(u)).log()
        return (logs - logs[0]) / (logs[-1] - logs[0])

    return by_fraction(process, steps, t_min, t_max, fraction)


def _resampled(values: Tensor, count: int) -> Tensor:
    """(count,) values at even places of the line through `values`, both ends included; one value is the first."""
    place = torch.arange(count, dtype=torch.float64) * (len(values) - 1) / max(count - 1, 1)
    left = place.floor().long().clamp(max=len(values) - 2)
    return torch.lerp(values[left], values[left + 1], place - left)
