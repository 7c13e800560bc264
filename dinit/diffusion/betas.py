"""VP with a table of betas of its own, where no formula gives them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dinit.diffusion.discrete import BetaChain, beta_schedule
from dinit.diffusion.process import PROCESSES


@PROCESSES.register("vp-betas")
@dataclass(frozen=True, repr=False)
class VPBetas(BetaChain):
    """A variance-preserving chain with the given betas, one a level. Ho et al. 2020. See BetaChain.

    betas: in (0, 1), at least 2; the default is DDPM's. The last may be 1, which leaves no signal at t = 1 and
    needs zero_terminal_snr. ValueError for others.
    """

    betas: tuple[float, ...] = field(default_factory=lambda: tuple(beta_schedule("linear", 1000).tolist()))
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))  # a list, out of a JSON file
        if len(self.betas) < 2:
            raise ValueError(f"vp-betas needs at least 2 betas, got {len(self.betas)}")
        inner = self.betas[:-1] if self.zero_terminal_snr and self.betas[-1] == 1 else self.betas
        outside = [beta for beta in inner if not 0 < beta < 1]
        if outside:
            raise ValueError(
                f"vp-betas: betas must lie in (0, 1), got {outside[0]:g}; a last beta of 1 needs zero_terminal_snr"
            )

    @property
    def num_steps(self) -> int:
        return len(self.betas)

    @property
    def _betas(self) -> Tensor:
        return torch.tensor(self.betas, dtype=torch.float64)

    def __repr__(self) -> str:
        ends = f"{self.betas[0]:g} .. {self.betas[-1]:g}"
        return f"VPBetas({self.num_steps} betas {ends}, zero_terminal_snr={self.zero_terminal_snr})"
