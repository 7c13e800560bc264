"""At which times the network is trained: distributions over [t_min, t_max], as quantile functions.

A time sampler maps uniform numbers to times, so how the uniforms fall (independent, or one to each stratum)
and where the times gather are separate choices.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from dinit.diffusion import Process
from dinit.diffusion.process import positive
from dinit.registry import Registry

TIME_SAMPLERS: Registry[type[TimeSampler]] = Registry("time sampler", "dinit.training.losses")

_EDGE = 2.0**-54  # the normal quantile is infinite at 0 and 1


class TimeSampler(ABC):
    """A distribution of training times. Subclasses are frozen dataclasses."""

    @abstractmethod
    def quantile(self, u: Tensor, process: Process, t_min: float, t_max: float) -> Tensor:
        """The times at which the distribution function has the values u in [0, 1]. float64, u's shape."""

    def uniforms(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) float64 in [0, 1): independent."""
        return torch.rand(count, generator=generator, dtype=torch.float64)

    def times(self, count: int, process: Process, t_min: float, t_max: float, generator: torch.Generator) -> Tensor:
        """(count,) float64 on the CPU, within [t_min, t_max]."""
        u = self.uniforms(count, generator)
        return self.quantile(u, process, t_min, t_max).clamp(t_min, t_max)


@TIME_SAMPLERS.register("uniform")
@dataclass(frozen=True)
class UniformTimes(TimeSampler):
    """Uniform in t."""

    def quantile(self, u: Tensor, process: Process, t_min: float, t_max: float) -> Tensor:
        return t_min + u * (t_max - t_min)


@TIME_SAMPLERS.register("logit-normal")
@dataclass(frozen=True)
class LogitNormal(TimeSampler):
    """t = sigmoid(mean + std z), z standard normal. Esser et al. 2024. std: positive."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        positive("logit-normal times", std=self.std)

    def quantile(self, u: Tensor, process: Process, t_min: float, t_max: float) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _normal_quantile(u))


@TIME_SAMPLERS.register("log-normal")
@dataclass(frozen=True)
class LogNormalNoise(TimeSampler):
    """Noise level sigma / alpha log-normal: log of it ~ N(mean, std^2). Karras et al. 2022, Table 1.

    The usual choice for 'edm', where times uniform in t would all be nearly pure noise. std: positive.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        positive("log-normal times", std=self.std)

    def quantile(self, u: Tensor, process: Process, t_min: float, t_max: float) -> Tensor:
        return process.time_of(-2 * (self.mean + self.std * _normal_quantile(u)))


@TIME_SAMPLERS.register("stratified")
@dataclass(frozen=True)
class Stratified(TimeSampler):
    """Another distribution (`base`), with one time in each of as many equally likely bins as the batch has rows.

    Each time keeps its distribution while the loss of a batch varies less; compare the low-discrepancy sampler
    of Kingma et al. 2021. of: a time sampler, its name, or a mapping with its name and options.
    """

    base: str | Mapping[str, Any] | TimeSampler = field(default="uniform")

    renamed_options: ClassVar[Mapping[str, str]] = {"of": "base"}

    def __post_init__(self) -> None:
        if isinstance(TIME_SAMPLERS.create(self.base), Stratified):
            raise ValueError("stratified times of stratified times are the same thing once; name another in 'base'")

    def uniforms(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) float64: uniform within bin i / count .. (i + 1) / count, the bins in random order."""
        bins = torch.randperm(count, generator=generator)
        return (bins + torch.rand(count, generator=generator, dtype=torch.float64)) / count

    def quantile(self, u: Tensor, process: Process, t_min: float, t_max: float) -> Tensor:
        return TIME_SAMPLERS.create(self.base).quantile(u, process, t_min, t_max)


@TIME_SAMPLERS.register("snr-shift")
@dataclass(frozen=True)
class SNRShift(TimeSampler):
    """Another distribution (`base`) moved along the log-SNR, as by data `scale` times as large. Yao et al. 2024.

    FasterDiT finds how fast a model trains in the density of the SNR that it is trained at, and moves it by scaling
    the data; here the data stay and every time t goes to where the log-SNR is lower by 2 ln scale. scale: positive;
    below 1 trains more at high noise levels. of: as in 'stratified'.
    """

    scale: float = 0.5
    base: str | Mapping[str, Any] | TimeSampler = field(default="uniform")

    renamed_options: ClassVar[Mapping[str, str]] = {"of": "base"}

    def __post_init__(self) -> None:
        positive("snr-shift times", scale=self.scale)
        TIME_SAMPLERS.create(self.base)

    def uniforms(self, count: int, generator: torch.Generator) -> Tensor:
        return TIME_SAMPLERS.create(self.base).uniforms(count, generator)

    def quantile(self, u: Tensor, process: Process, t_min: float, t_max: float) -> Tensor:
        t = TIME_SAMPLERS.create(self.base).quantile(u, process, t_min, t_max).clamp(t_min, t_max)
        return process.time_of(process.log_snr(t) + 2 * math.log(self.scale))


def _normal_quantile(u: Tensor) -> Tensor:
    return torch.special.ndtri(u.clamp(_EDGE, 1 - _EDGE))
