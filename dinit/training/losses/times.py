"""Distributions of training times over [t_min, t_max], as quantile functions.

A time sampler maps uniform numbers to times. How the uniform numbers are drawn (independently, or one in each
stratum) and where the times are dense are therefore separate choices.
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
        """The times at which the distribution function has the values u.

        Args:
            u: Any shape, float64, in [0, 1].
            process: The noise process of the network.
            t_min: The least time, in [0, 1).
            t_max: The largest time, above t_min and at most 1.

        Returns:
            float64 of u's shape; `times` clamps it to [t_min, t_max].
        """

    def uniforms(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the uniform numbers of one batch.

        Args:
            count: Samples in the batch.
            generator: Random numbers, on the CPU.

        Returns:
            (count,) float64 in [0, 1): independent here.
        """
        return torch.rand(count, generator=generator, dtype=torch.float64)

    def times(self, count: int, process: Process, t_min: float, t_max: float, generator: torch.Generator) -> Tensor:
        """Draw the training times of one batch.

        Args:
            count: Samples in the batch.
            process: The noise process of the network.
            t_min: The least time, in [0, 1).
            t_max: The largest time, above t_min and at most 1.
            generator: Random numbers, on the CPU.

        Returns:
            (count,) float64 on the CPU, within [t_min, t_max].
        """
        u = self.uniforms(count, generator)
        return self.quantile(u, process, t_min, t_max).clamp(t_min, t_max)


@TIME_SAMPLERS.register("uniform")
@dataclass(frozen=True)
class UniformTimes(TimeSampler):
    """Times uniform in t."""

    def quantile(self, u: Tensor, process: Process, t_min: float, t_max: float) -> Tensor:
        return t_min + u * (t_max - t_min)


@TIME_SAMPLERS.register("logit-normal")
@dataclass(frozen=True)
class LogitNormal(TimeSampler):
    """Logit-normal times t = sigmoid(mean + std z), z standard normal. Esser et al. 2024, arXiv:2403.03206.

    Args:
        mean: Of the logit of t. Above 0 trains more at high noise.
        std: Of the logit of t, positive.

    Raises:
        ValueError: std is not positive.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        positive("logit-normal times", std=self.std)

    def quantile(self, u: Tensor, process: Process, t_min: float, t_max: float) -> Tensor:
        return torch.sigmoid(self.mean + self.std * _normal_quantile(u))


@TIME_SAMPLERS.register("log-normal")
@dataclass(frozen=True)
class LogNormalNoise(TimeSampler):
    """Log-normal noise levels: log(sigma / alpha) ~ N(mean, std^2). Karras et al. 2022, Table 1, arXiv:2206.00364.

    The usual choice for 'edm', where times uniform in t would all be nearly pure noise.

    Args:
        mean: Of log(sigma / alpha).
        std: Of log(sigma / alpha), positive.

    Raises:
        ValueError: std is not positive.
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
    """Stratified times of another distribution: one in each of B equally likely bins, for B images in the batch.

    Each time keeps its distribution while the loss of a batch varies less; compare the low-discrepancy sampler
    of Kingma et al. 2021, arXiv:2107.00630.

    Args:
        base: The distribution: a time sampler, its name, or a mapping with its name and options.

    Raises:
        ValueError: base is stratified itself, or not a time sampler.
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
    """Times of another distribution, shifted in log-SNR as by data `scale` times as large. Yao et al. 2024.

    FasterDiT relates the speed of training to the density of the SNR at the training times, and shifts that density
    by scaling the data. Here the data stay as they are, and every time t becomes the time whose log-SNR is higher
    by 2 ln scale.

    Args:
        scale: Positive; below 1 trains more at high noise levels.
        base: The distribution, as of 'stratified'.

    Raises:
        ValueError: scale is not positive, or base not a time sampler.
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
