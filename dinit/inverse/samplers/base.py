"""Posterior samplers: methods of restoration that own their loop. The contract, the registry, what they share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from dinit.diffusion import Denoiser, Scales
from dinit.inverse.divergence import warn_of_divergence
from dinit.inverse.measurement import Measurement
from dinit.registry import Registry
from dinit.samplers.base import Sampler, StepNoise

POSTERIOR_SAMPLERS: Registry[type[PosteriorSampler]] = Registry("posterior sampler", "dinit.inverse.samplers")


@dataclass(frozen=True)
class PosteriorSampler(Sampler):
    """A sampler of p(x0 | y). It runs as every sampler does: `iterate`, `sample`, on any denoiser and any grid.

    Args:
        measurement: What the images are known by; None for nothing, and the samples are those of the denoiser.
    """

    measurement: Measurement | None = None

    linear_only: ClassVar[bool] = True

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        if self.measurement is not None and self.linear_only:
            self.measurement.linear(type(self).__name__)

    def check_end(self, x0: Tensor) -> None:
        if self.measurement is not None:
            warn_of_divergence(getattr(self, "registry_name", type(self).__name__), self.measurement, x0)

    def rows(self, part: slice) -> Self:
        """The sampler of some of the images.

        Args:
            part: Which.
        """
        return self if self.measurement is None else replace(self, measurement=self.measurement.rows(part))

    def fitted(self, x: Tensor) -> Measurement | None:
        """The measurement with a row for each of x, (B, C, H, W); see `Measurement.fitted`."""
        return None if self.measurement is None else self.measurement.fitted(x)


@dataclass(frozen=True, slots=True)
class LaterDraws:
    """The draws of a step from the number `first` on, as the noise of a step within it."""

    noise: StepNoise
    first: int

    def __call__(self, j: int, like: Tensor) -> Tensor:
        return self.noise(self.first + j, like)
