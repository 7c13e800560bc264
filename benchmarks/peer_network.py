"""Denoiser of dinit for the libraries of benchmarks/peers_*.py: at any alpha and sigma, evaluations counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.diffusion import Denoiser, Process, Scales

F64 = torch.float64
Wanted = Callable[[str, str], bool]
"""Of a solver's name (a peer's begins with its library's) and a grid's: whether to run it."""


@dataclass(frozen=True)
class Run:
    """A peer's run. library, solver, grid: in words. end: (B, C, H, W), where it led.

    levels: sigma / alpha at the ends of its steps. denoised: whether the posterior mean at the last of them is the
    end; otherwise the state there is.
    """

    library: str
    solver: str
    grid: str
    end: Tensor
    levels: tuple[float, ...]
    denoised: bool

    @property
    def name(self) -> str:
        return f"{self.library} {self.solver}"


class Network:
    """x = alpha x0 + sigma eps -> the posterior mean of x0, evaluated at the process's same sigma / alpha."""

    def __init__(self, model: Denoiser, batch: int) -> None:
        self.model, self.cond, self.calls = model, model.condition(None, batch), 0

    def __call__(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        k = scales_at(self.model.process, sigma / alpha if alpha else None)
        self.calls += 1
        return self.model(x * (float(k.sigma) / sigma), k, self.cond).x0


KNOWN: dict[tuple[Process, float | None], Scales] = {}


def rounded(level: float) -> float:
    """To 12 figures: the same level comes with different last bits out of different divisions."""
    return float(f"{level:.12g}")


def prepare(process: Process, levels: Tensor) -> None:
    """Looks up the times of many values of sigma / alpha at once, which is faster than one by one."""
    given = (rounded(v) for v in levels.double().tolist() if 0 < v < math.inf)
    wanted = [v for v in dict.fromkeys(given) if (process, v) not in KNOWN]
    scales = process.scales(process.time_of_noise_level(torch.tensor(wanted, dtype=F64)))
    KNOWN.update({(process, v): k for v, k in zip(wanted, scales.unbind(), strict=True)})


def scales_at(process: Process, level: float | None) -> Scales:
    """The scales of the process where sigma / alpha is level; None is pure noise, t = 1."""
    level = rounded(level) if level is not None else None
    if (process, level) not in KNOWN:
        t = process.time_of_noise_level(torch.tensor(level, dtype=F64)) if level is not None else 1.0
        KNOWN[process, level] = process.scales(t)
    return KNOWN[process, level]


def noise_levels(process: Process, ends: tuple[float, ...]) -> tuple[list[float], list[float]]:
    """(firsts, lasts): the values of sigma / alpha at which a peer may start and stop.

    A path without signal at t = 1 has no first one, and a run then starts at 100 or 1,000. ends: lasts
    wanted; none is below that of the process's t_min, which is one of them.
    """
    k, low = process.scales(1.0), process.scales(process.t_min)
    least = float(low.sigma / low.alpha)
    firsts = [float(k.sigma / k.alpha)] if float(k.alpha) else [1e2, 1e3]
    return firsts, [least, *(end for end in ends if end > least)]
