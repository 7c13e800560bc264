"""Posterior samplers: methods of restoration that own their loop. The contract and the registry."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from dinit.diffusion import Denoiser, Scales
from dinit.inverse.measurement import Measurement
from dinit.registry import Registry
from dinit.samplers.base import Sampler

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

    def rows(self, part: slice) -> Self:
        """The sampler of some of the images.

        Args:
            part: Which.
        """
        return self if self.measurement is None else replace(self, measurement=self.measurement.rows(part))
