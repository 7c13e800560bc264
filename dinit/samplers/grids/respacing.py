"""Respacing: subsets of a chain's timesteps, as in guided-diffusion and DiT. Nichol & Dhariwal 2021."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, repeat

import torch
from torch import Tensor

from dinit.diffusion import Process
from dinit.samplers.grids.base import GRIDS, TimeGrid


@GRIDS.register("respaced")
@dataclass(frozen=True)
class Respaced(TimeGrid):
    """A subset of the chain's timesteps, as guided-diffusion and DiT space them.

    Source: arXiv:2102.09672 (improved DDPM), whose code calls it timestep_respacing.

    Args:
        sections: '' for one section of `steps` timesteps, both ends included; '10,5,3' cuts the chain into equal
            parts, cleanest first, and takes that many timesteps of each; 'ddim25' takes the timesteps 0, n, 2n
            and so on, with the smallest whole stride n that gives 25.

    Raises:
        ValueError: a text of another form; from `times`, where the timesteps do not fit in a section.
    """

    sections: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.sections, int):  # one number, as YAML and the command line read it
            object.__setattr__(self, "sections", str(self.sections))
        counts = self.sections.removeprefix("ddim").split(",") if self.sections else []
        if not all(c.strip().isdigit() and int(c) > 0 for c in counts) or (self._strided and len(counts) > 1):
            raise ValueError(f"sections must read like '25', '10,5,3', 'ddim25' or '', got {self.sections!r}")

    @property
    def _strided(self) -> bool:
        return self.sections.startswith("ddim")

    @property
    def length(self) -> int | None:
        return sum(map(int, self.sections.removeprefix("ddim").split(","))) if self.sections else None

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        if self.length not in (None, steps):
            raise ValueError(f"{self} has {self.length} times, got steps = {steps}")
        taken = self.timesteps(process.num_steps, steps)
        times = (torch.tensor(taken[::-1], dtype=torch.float64) + 1) / process.num_steps
        return times.clamp(t_min, t_max)

    def timesteps(self, total: int, steps: int) -> list[int]:
        """The timesteps taken of a chain.

        Args:
            total: Timesteps of the chain.
            steps: How many to take; the number that `sections` fixes, where it fixes one.

        Returns:
            Indices from 0, the cleanest, to at most total - 1, increasing.

        Raises:
            ValueError: They do not fit in a section, or no whole stride gives them.
        """
        if self._strided:
            for stride in range(1, total + 1):
                if len(range(0, total, stride)) == steps:
                    return list(range(0, total, stride))
            raise ValueError(f"no whole stride takes {steps} of {total} timesteps; use sections = '{steps}'")
        counts = [int(c) for c in self.sections.split(",")] if self.sections else [steps]
        taken, start = [], 0
        for i, count in enumerate(counts):
            size = total // len(counts) + (i < total % len(counts))
            if count > size:
                raise ValueError(f"{count} timesteps do not fit in a section of {size} (of {total} timesteps)")
            stride = (size - 1) / (count - 1) if count > 1 else 1.0
            # The stride is added up, not multiplied: the last bit decides how the published halves are rounded.
            offsets = accumulate(repeat(stride, count - 1), initial=0.0)
            taken += [start + round(offset) for offset in offsets]
            start += size
        return taken
