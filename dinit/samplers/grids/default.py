"""Default time grids, and the default end of runs on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dinit.diffusion import Process
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.grids.uniform import Uniform

Usual = Callable[[Process], TimeGrid]

if TYPE_CHECKING:  # points.py imports this module
    from dinit.samplers.points import End


def default_grid(process: Process) -> TimeGrid:
    """Karras's grid where alpha is constant (VE, EDM: sigma spans decades), even in t elsewhere."""
    return Karras() if spans_decades(process) else Uniform()


def noise_level_grid(process: Process) -> TimeGrid:
    """Default grid of solvers that step in sigma / alpha: the process's default, or even in log-SNR.

    Where the noise level starts finite and huge (20,000 on the cosine chain), even steps in t leave nearly all of
    it to the first; where it is infinite, these solvers take that step along the straight path.
    """
    first = process.ends[1].alpha
    return LogSNR() if 0.0 < first < 1.0 else default_grid(process)


def multistep_grid(process: Process, shift: float = 0.5, usual: Usual = default_grid) -> TimeGrid:
    """Default grid of multistep solvers where sigma spans decades: even on the straight path, but for the shift.

    Solvers that extrapolate the posterior mean, or end with it, want more times near the data than those that
    extrapolate the noise or a velocity and take the last step themselves. Karras's times leave solvers of high
    order at several times the error there, and at a higher FID. On other processes shifted times lower the error
    too, but raised the FID of shipped networks: the usual grid stays.

    Args:
        process: Of the run.
        shift: Of the times; below 1 they are denser near the data.
        usual: The grid of other processes.
    """
    return Shifted(shift) if spans_decades(process) else usual(process)


def spans_decades(process: Process) -> bool:
    """Whether alpha is constant (VE, EDM), so that sigma alone makes the noise."""
    return process.ends[1].alpha == 1.0


def own_last_step(process: Process) -> End:
    """Default end of solvers that extrapolate the noise or a velocity: their own step to t = 0, if it has no noise.

    The ODE is regular there in these variables: a solver of high order keeps its order over that step, which the
    posterior mean, a step of first order, does not.
    """
    return "clean" if process.ends[0].sigma == 0 else "posterior-mean"
