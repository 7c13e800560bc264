"""Time grids given one by one, in the call or in a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from dinit.diffusion import Process
from dinit.samplers.grids.base import GRIDS, TimeGrid

_MAKE = "search_timesteps(..., cache=path) of dinit.samplers makes such a file"


@GRIDS.register("times")
@dataclass(frozen=True)
class Times(TimeGrid):
    """Times given one by one: decreasing numbers in [0, 1], all but the last with sigma > 0.

    Args:
        values: The times.

    Raises:
        ValueError: No times, or times that do not decrease.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(float(t) for t in self.values))  # a list, out of a JSON file
        if not self.values or any(later >= t for t, later in pairwise(self.values)):
            raise ValueError(f"a grid needs decreasing times as its values, got {list(self.values)}")

    @property
    def length(self) -> int:
        return len(self.values)

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        if steps != len(self.values):
            raise ValueError(f"this grid has {len(self.values)} times, got steps = {steps}")
        return torch.tensor(self.values, dtype=torch.float64)


@GRIDS.register("searched")
@dataclass(frozen=True)
class Searched(TimeGrid):
    """Times that `search_timesteps` found and cached. Li et al. 2023 (AutoDiffusion).

    Source: arXiv:2309.10438.

    Args:
        path: The JSON file of the cache, which is read on first use.

    Raises:
        FileNotFoundError: From `times` and `values`, where there is no such file.
        ValueError: From `times` and `values`, where the file is not such a cache.
    """

    path: str

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The times, decreasing."""
        try:
            found = json.loads(Path(self.path).expanduser().read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{self.path} is not there: {_MAKE}") from error
        except ValueError:
            found = None
        if not (isinstance(found, dict) and isinstance(found.get("times"), list)):
            raise ValueError(f"{self.path} holds no searched times: {_MAKE}")
        return tuple(float(t) for t in found["times"])

    @property
    def length(self) -> int:
        return len(self.values)

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return Times(self.values).times(process, steps, t_min, t_max)
