"""Time grids of a discrete chain's timesteps, spaced as in diffusers: trailing, leading and linspace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dinit.diffusion import Process
from dinit.samplers.grids.base import GRIDS, TimeGrid
from dinit.samplers.grids.spacing import line
from dinit.samplers.idle import refuse_idle

Spacing = Literal["trailing", "leading", "linspace"]


@GRIDS.register(
    "timesteps", aliases={spacing: {"spacing": spacing} for spacing in ("trailing", "leading", "linspace")}
)
@dataclass(frozen=True)
class Timesteps(TimeGrid):
    """Timesteps of the discrete chain, trailing, leading or linspace. Lin et al. 2023, Table 2.

    Timestep i of the process's num_steps stands at t = (i + 1) / num_steps. Source: arXiv:2305.08891.

    Args:
        spacing: 'trailing' includes the noisiest timestep, 'leading' the cleanest, 'linspace' both. It is
            timestep_spacing of diffusers.
        offset: Added to the timesteps of 'leading'; diffusers' steps_offset.

    Raises:
        ValueError: An offset with another spacing than 'leading'; from `times`, another spacing, or more steps than
            the process has.
    """

    spacing: Spacing = "trailing"
    offset: int = 0

    def __post_init__(self) -> None:
        if self.spacing != "leading":
            refuse_idle(self, ("offset",), f"with spacing = {self.spacing!r}", "take spacing = 'leading'")

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        total = process.num_steps
        if steps > total:
            raise ValueError(f"{steps} steps do not fit in the {total} timesteps of {process}")
        if self.spacing == "trailing":
            taken = torch.arange(total, 0, -total / steps, dtype=torch.float64)[:steps].round() - 1
        elif self.spacing == "leading":
            taken = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (total // steps) + self.offset
        elif self.spacing == "linspace":
            taken = line(total - 1, 0, steps).round()
        else:
            raise ValueError(f"spacing must be 'trailing', 'leading' or 'linspace', got {self.spacing!r}")
        return ((taken + 1) / total).clamp(t_min, t_max)
