"""Karras's time grid (EDM): a power of the noise level, equally spaced."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dinit.diffusion import Process
from dinit.samplers.grids.base import GRIDS, TimeGrid
from dinit.samplers.grids.spacing import between_log_snrs, line


@GRIDS.register("karras")
@dataclass(frozen=True)
class Karras(TimeGrid):
    """sigma / alpha equally spaced in its rho-th root. Karras et al. 2022, Eq. 5.

    u_i = (u_max^(1/rho) + i / (steps - 1) (u_min^(1/rho) - u_max^(1/rho)))^rho in u = sigma / alpha, which is EDM's
    sigma. Source: arXiv:2206.00364.

    Args:
        rho: Positive; the larger, the more steps at low noise. EDM's value is 7.
        first: Where alpha is 0 at t_max, the spacing starts at this time; see `LogSNR`.

    Raises:
        ValueError: rho is not positive.
    """

    rho: float = 7.0
    first: float = 0.999

    def __post_init__(self) -> None:
        if not self.rho > 0:
            raise ValueError(f"rho must be positive, got {self.rho}")

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        def roots(low: Tensor, high: Tensor, count: int) -> Tensor:  # of log-SNR
            root = lambda log_snr: (-log_snr / (2 * self.rho)).exp()  # noqa: E731
            return -2 * self.rho * line(root(high), root(low), count).log()

        return between_log_snrs(process, steps, t_min, t_max, self.first, roots)
