"""Time grids: where the sampling steps fall. The base class, and the registry.

A grid gives decreasing float64 times on the CPU, and every grid works with every sampler. `times(process, steps)`
returns `steps` times at which the network is evaluated, all with sigma > 0. The driver takes steps - 1 solver steps
between them and returns the posterior mean at the last, so that a solver of one network evaluation a step costs
`steps` evaluations in all, as in diffusers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from dinit.diffusion import Process
from dinit.registry import Registry
from dinit.samplers._names import advise_grid

GRIDS: Registry[type[TimeGrid]] = Registry("grid", "dinit.samplers.grids", advise=advise_grid)


class TimeGrid(ABC):
    """A rule for placing times. Subclasses are frozen dataclasses."""

    @property
    def length(self) -> int | None:
        """The number of times where the grid fixes it; None where it is the caller's choice."""
        return None

    @abstractmethod
    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        """The times of a run.

        Args:
            process: The path, which relates times to noise levels.
            steps: The number of times, at least 1.
            t_min: The cleanest time at which the network may be evaluated, in (0, 1).
            t_max: The noisiest time, in (t_min, 1], which is the first of the grid.

        Returns:
            (steps,) float64 on the CPU, decreasing, within [t_min, t_max] and with sigma > 0.

        Raises:
            ValueError: The grid has another number of times, or the process has too few.
        """
