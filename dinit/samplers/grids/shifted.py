"""Shifted time grid of flow models, for every process. Esser et al. 2024 (Stable Diffusion 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dinit.diffusion import Process
from dinit.samplers.grids.base import GRIDS, TimeGrid


@GRIDS.register("shifted", aliases=("flow-shift",))
@dataclass(frozen=True)
class Shifted(TimeGrid):
    """sigma / (alpha + sigma) is shift v / (1 + (shift - 1) v), v equally spaced. Esser et al. 2024, Sec. 5.3.2.

    u = sigma / (alpha + sigma) is the time of the straight path (1 - u) x0 + u eps, on which any process is once
    divided by alpha + sigma, so the same rule serves them all; on the flow process u is t.
    Source: arXiv:2403.03206.

    Args:
        shift: Positive; above 1 there are more steps at high noise, 1 leaves v as it is.
        end: 'open' leaves v = 0 out, as pipelines of flow models do (v = 1, ..., 1 / steps), and never goes below
            t_min; 't_min' spaces v down to t_min.
        first: a run starts at the lower of it and t_max; in (0, 1]. A little below 1 it gives multistep solvers a
            finite first log-SNR to extrapolate from on paths without signal at t = 1, where the state hardly
            differs: diffusers does so.

    Raises:
        ValueError: a number outside its range, or another end.
    """

    shift: float = 3.0
    end: Literal["open", "t_min"] = "open"
    first: float = 1.0

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"shift must be positive, got {self.shift}")
        if not 0 < self.first <= 1:
            raise ValueError(f"first must be above 0 and at most 1, got {self.first}")
        if self.end not in ("open", "t_min"):
            raise ValueError(f"end must be 'open' or 't_min', got {self.end!r}")

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        ends = torch.tensor([max(min(t_max, self.first), t_min), t_min], dtype=torch.float64)
        k = process.scales(ends)
        # Before the shift: v = u / (shift - (shift - 1) u) undoes it.
        u = k.sigma / (k.alpha + k.sigma)
        high, low = (u / (self.shift - (self.shift - 1) * u)).tolist()
        last = max(high / steps, low) if self.end == "open" else low
        v = torch.linspace(high, last, steps, dtype=torch.float64)[1:]
        # sigma / alpha = u / (1 - u) is shift v / (1 - v).
        times = process.time_of_noise_level(self.shift * v / (1 - v))
        if steps > 1 and last == low:
            times[-1] = t_min
        return torch.cat([ends[:1], times])
