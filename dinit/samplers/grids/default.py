"""Default time grids."""

from __future__ import annotations

from dinit.diffusion import Process
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.grids.uniform import Uniform


def default_grid(process: Process) -> TimeGrid:
    """Karras's grid where alpha is constant (VE, EDM: sigma spans decades), even in t elsewhere."""
    return Karras() if float(process.scales(1.0).alpha) == 1.0 else Uniform()


def noise_level_grid(process: Process) -> TimeGrid:
    """Default grid of solvers that step in sigma / alpha: the process's default, or even in log-SNR.

    Where the noise level starts finite and huge (20,000 on the cosine chain), even steps in t leave nearly all of
    it to the first; where it is infinite, these solvers take that step along the straight path.
    """
    first = float(process.scales(1.0).alpha)
    return LogSNR() if 0.0 < first < 1.0 else default_grid(process)
