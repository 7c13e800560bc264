"""Schedules of the guidance scale, as functions of time or log-SNR. Wang et al. 2024."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dinit.diffusion import Scales
from dinit.registry import Registry

SCHEDULES: Registry[type[ScaleSchedule]] = Registry("guidance schedule", "dinit.samplers.guidance")


class ScaleSchedule(ABC):
    """Part of the guidance that applies at each time, in [0, 1]. Subclasses are frozen dataclasses."""

    @abstractmethod
    def weight(self, k: Scales) -> Tensor:
        """The fraction of the guidance that applies, of k.time's shape."""

    def scale_at(self, scale: float, k: Scales) -> Tensor | float:
        """The guidance scale at a time: the conditional model where the weight is 0, the full scale where it is 1.

        Args:
            scale: The full scale.
            k: The scales of the time.

        Returns:
            1 + (scale - 1) weight, of k.time's shape, or a number.
        """
        return 1 + (scale - 1) * self.weight(k)


@SCHEDULES.register("constant")
@dataclass(frozen=True)
class Constant(ScaleSchedule):
    """The same scale at every time."""

    def weight(self, k: Scales) -> Tensor:
        return torch.ones_like(k.time)

    def scale_at(self, scale: float, k: Scales) -> Tensor | float:
        return scale


class Ramp(ScaleSchedule):
    """Base of the schedules with a weight from `first` at the noisy end to `last` at the clean one.

    Args:
        first: Weight at the noisy end, in [0, 1].
        last: Weight at the clean end, in [0, 1].

    Raises:
        ValueError: A weight out of its range.
    """

    first: float
    last: float

    def __post_init__(self) -> None:
        if not (0 <= self.first <= 1 and 0 <= self.last <= 1):
            raise ValueError(f"a schedule's weights lie in [0, 1], got first = {self.first}, last = {self.last}")

    @abstractmethod
    def progress(self, k: Scales) -> Tensor:
        """0 at the noisy end, 1 at the clean one."""

    def weight(self, k: Scales) -> Tensor:
        return self.first + (self.last - self.first) * self.progress(k)


@SCHEDULES.register("linear")
@dataclass(frozen=True)
class Linear(Ramp):
    """Linear in time from `first` at t = 1 to `last` at t = 0. Wang et al. 2024.

    Source: arXiv:2404.13040.

    Args:
        first: Weight at t = 1, in [0, 1].
        last: Weight at t = 0, in [0, 1].
    """

    first: float = 0.0
    last: float = 1.0

    def progress(self, k: Scales) -> Tensor:
        return 1 - k.time


@SCHEDULES.register("cosine")
@dataclass(frozen=True)
class Cosine(Ramp):
    """Half a cosine in time from `first` at t = 1 to `last` at t = 0. Wang et al. 2024.

    Source: arXiv:2404.13040.

    Args:
        first: Weight at t = 1, in [0, 1].
        last: Weight at t = 0, in [0, 1].
    """

    first: float = 0.0
    last: float = 1.0

    def progress(self, k: Scales) -> Tensor:
        return (1 + (math.pi * k.time).cos()) / 2


@SCHEDULES.register("log-snr")
@dataclass(frozen=True)
class LogSNR(Ramp):
    """Linear in log-SNR from `first` at `low` and below to `last` at `high` and above.

    Args:
        low: Log-SNR of the noisy end, finite.
        high: Log-SNR of the clean end, finite and above low.
        first: Weight at the noisy end, in [0, 1].
        last: Weight at the clean end, in [0, 1].

    Raises:
        ValueError: An option out of its range.
    """

    low: float = -6.0
    high: float = 6.0
    first: float = 0.0
    last: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -math.inf < self.low < self.high < math.inf:
            raise ValueError(f"a ramp in log-SNR needs finite low < high, got {self.low} and {self.high}")

    def progress(self, k: Scales) -> Tensor:
        return ((k.log_snr - self.low) / (self.high - self.low)).clamp(0, 1)


@SCHEDULES.register("power-cosine")
@dataclass(frozen=True)
class PowerCosine(ScaleSchedule):
    """Power-cosine: low while noise is high. Hatamizadeh et al. 2024 (DiffiT).

    The weight is (1 - cos(pi (1 - n / num_steps)^power)) / 2, where n = num_steps t - 1 is the timestep of the
    published chain. Source: arXiv:2312.02139.

    Args:
        power: Positive; 4 for the paper's 256 px images. The higher, the later the guidance comes in.
        num_steps: Timesteps of the published chain, at least 1.

    Raises:
        ValueError: An option out of its range.
    """

    power: float = 4.0
    num_steps: int = 1000

    renamed_options: ClassVar[Mapping[str, str]] = {"levels": "num_steps"}

    def __post_init__(self) -> None:
        if not (0 < self.power < math.inf and self.num_steps >= 1):
            raise ValueError(
                f"need power > 0 and num_steps >= 1, got power = {self.power}, num_steps = {self.num_steps}"
            )

    def weight(self, k: Scales) -> Tensor:
        clean = (1 - k.time + 1 / self.num_steps).clamp(0, 1)
        return (1 - (math.pi * clean**self.power).cos()) / 2


def make_schedule(spec: ScaleSchedule | str | Mapping[str, Any]) -> ScaleSchedule:
    """The schedule of a name, a mapping with options, or an object.

    Args:
        spec: The name, mapping or object.

    Raises:
        ValueError: Something else is given.
    """
    made = SCHEDULES.create(spec)
    if not isinstance(made, ScaleSchedule):
        raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}, or a mapping with options; got {spec!r}")
    return made
