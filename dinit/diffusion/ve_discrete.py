"""VE told as a chain of levels: the time input that score_sde's discrete NCSN++ was trained with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dinit.diffusion.continuous import VE
from dinit.diffusion.process import PROCESSES, Scales


@PROCESSES.register("ve-discrete")
@dataclass(frozen=True)
class VEDiscrete(VE):
    """VE whose network is told the index of a level instead of sigma. Song & Ermon 2019; Song et al. 2021, SMLD.

    The num_steps levels fall geometrically: level 0 is sigma_max at t = 1, level num_steps - 1 is sigma_min at
    t = 0. Between levels the index is fractional and sigma stays geometric, so the path is VE's at every t.
    ValueError for fewer than 2 levels.
    """

    num_steps: int = 1000  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < 2:
            raise ValueError(f"VEDiscrete: num_steps must be at least 2, got {self.num_steps}")

    def noise_label(self, k: Scales) -> Tensor:
        """The level's index, 0 at sigma_max to num_steps - 1 at sigma_min (fractional between levels)."""
        return (self.num_steps - 1) * (1 - k.time)
