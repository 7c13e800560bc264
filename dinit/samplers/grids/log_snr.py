"""Time grids in log-SNR, which is -2 log(sigma / alpha): even steps, and steps that crowd one end."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dinit.diffusion import Process
from dinit.samplers.grids.base import GRIDS, TimeGrid
from dinit.samplers.grids.spacing import between_log_snrs, by_fraction, line


@GRIDS.register("log-snr")
@dataclass(frozen=True)
class LogSNR(TimeGrid):
    """Equally spaced in log-SNR. Lu et al. 2022 (DPM-Solver).

    Source: arXiv:2206.00927.

    Args:
        first: Where alpha is 0 at t_max, log-SNR has no first value: the spacing starts at this time, below 1, and
            the trajectory still starts at t_max.
    """

    first: float = 0.999

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return between_log_snrs(process, steps, t_min, t_max, self.first, lambda lo, hi, n: line(hi, lo, n))


@GRIDS.register("exponential", special_case_of="log-snr")
@dataclass(frozen=True)
class Exponential(TimeGrid):
    """sigma / alpha in geometric progression: k-diffusion's exponential, which is 'log-snr' by its other name."""

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return by_fraction(process, steps, t_min, t_max, lambda u: u)


@GRIDS.register("polyexponential")
@dataclass(frozen=True)
class Polyexponential(TimeGrid):
    """log(sigma / alpha) falls as (1 - u)^rho with u even in [0, 1], as in k-diffusion.

    Args:
        rho: Positive. 1 is exponential; above 1 there are more steps at low noise, below 1 at high noise.

    Raises:
        ValueError: rho is not positive.
    """

    rho: float = 1.5

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"rho must be positive, got {self.rho}")

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return by_fraction(process, steps, t_min, t_max, lambda u: 1 - (1 - u) ** self.rho)
