"""Log-likelihood by the probability-flow ODE. Song et al. 2021, Section 4.3; Grathwohl et al. 2019 (FFJORD).

    found = log_likelihood(denoiser, x, labels=[3, 1], steps=100)
    found.bits_per_dim                                                  # (2,)
    x = RK4().sample(denoiser, found.latent, 100, grid="log-snr", initial_state=found.latent, end="state")  # back

x is the state at the grid's last time, t_min, whose density is found: the data's with that little noise. Published
bits/dim of 8-bit images are those of dequantised pixels, `dequantise(images)`, in [-1, 1]: a lower bound on the
log-probability of the 256 levels (Theis et al. 2016), reported with a bin of 2 / 256, which adds 7 bits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, RunContext, Scales
from dinit.diffusion.condition import SupportsNormal
from dinit.registry import suggest
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.multistep.ode_variables import STRAIGHT, TIME, ODEVariable
from dinit.samplers.noise import NoiseSource
from dinit.samplers.ode.runge_kutta import MIDPOINT, RK4_CLASSIC, TRAPEZOID, Tableau, combined
from dinit.samplers.points import GridLike, sampling_points

Probe = Literal["rademacher", "gaussian"]
METHODS = {"euler": Tableau((), (), (1,)), "midpoint": MIDPOINT, "heun": TRAPEZOID, "rk4": RK4_CLASSIC}


@dataclass(frozen=True)
class LogLikelihood:
    """log_prob: (B,) float64, nats. bits_per_dim: (B,) float64. latent: (B, C, H, W), x carried to the noise.

    nfe: network evaluations per image; each is followed by one backward pass a probe, or one a dimension.
    """

    log_prob: Tensor
    bits_per_dim: Tensor
    latent: Tensor
    nfe: int


class Trace(ABC):
    """How the divergence of a vector field is found, from vector-Jacobian products."""

    @abstractmethod
    def __call__(self, slope: Tensor, x: Tensor, noise_source: SupportsNormal, call: int) -> Tensor:
        """tr d slope / dx of each sample, (B,). slope: (B, ...) computed from x with gradients. call: which one."""


@dataclass(frozen=True)
class Exact(Trace):
    """The sum of the diagonal, one backward pass a dimension."""

    def __call__(self, slope: Tensor, x: Tensor, noise_source: SupportsNormal, call: int) -> Tensor:
        size = x[0].numel()
        total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        for i in range(size):
            (row,) = torch.autograd.grad(slope.flatten(1)[:, i].sum(), x, retain_graph=i < size - 1)
            total = total + row.flatten(1)[:, i]
        return total


@dataclass(frozen=True)
class Hutchinson(Trace):
    """The mean of v^T J v over probes v of unit covariance: unbiased. Hutchinson 1990.

    probe: 'rademacher' (signs), whose variance is the smaller, or 'gaussian'. probes: how many, each one backward
    pass. fresh: other probes at every evaluation (SiT), so that their errors average out over the run; False is one
    set for the whole run (FFJORD), which an adaptive solver needs. They are draws of the stream 'probe'.
    """

    probe: Probe = "rademacher"
    probes: int = 1
    fresh: bool = False

    def __post_init__(self) -> None:
        if self.probe not in ("rademacher", "gaussian"):
            raise ValueError(f"unknown probe {self.probe!r}{suggest(str(self.probe), ['rademacher', 'gaussian'])}")
        if isinstance(self.probes, bool) or not isinstance(self.probes, int) or self.probes < 1:
            raise ValueError(f"probes must be a whole number, at least 1; got {self.probes!r}")

    def __call__(self, slope: Tensor, x: Tensor, noise_source: SupportsNormal, call: int) -> Tensor:
        total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        for i in range(self.probes):
            v = noise_source.normal("probe", i + self.probes * call * self.fresh, x)
            if self.probe == "rademacher":
                v = torch.where(v < 0, -torch.ones_like(v), torch.ones_like(v))
            (row,) = torch.autograd.grad(slope, x, v, retain_graph=i < self.probes - 1)
            total = total + (row * v).flatten(1).double().sum(1)
        return total / self.probes


def log_likelihood(
    denoiser: Denoiser,
    x: Tensor,
    steps: int | None = None,
    *,
    labels: Tensor | Sequence[int] | None = None,
    grid: GridLike | None = None,
    trace: Trace | Literal["hutchinson", "exact"] = "hutchinson",
    method: Literal["rk4", "heun", "midpoint", "euler"] = "rk4",
    variable: ODEVariable = STRAIGHT,
    prior: Literal["centred", "standard"] = "centred",
    bin_width: float = 2 / 256,
    noise_source: SupportsNormal | None = None,
    seed: int | Sequence[int] = 0,
) -> LogLikelihood:
    """log p(x | labels) of a batch, its bits/dim, and the noise that x is carried to.

    x: (B, C, H, W) float32 or float64. steps: times, as for a sampler; 100 where no grid fixes it. grid: decreasing
    times, the last of which is x's; None is uniform log-SNR. method: the Runge–Kutta method taken between times, in
    `variable`. prior: the Gaussian that the latent is judged by. 'standard' is published practice
    and has mean 0, though a mean m of the data leaves alpha m at t_max: 1e-3 bits/dim and more on VE. 'centred' has
    the network say m, at noise that is independent of the latent. bin_width: of one level of the data, in units of
    x; bits/dim is -log2 p(x) / D - log2(bin_width). 2 / 256 (+ 7 bits) is for [-1, 1], 1 / 256 (+ 8) for [0, 1], 1
    for a density.
    noise_source: of probes, NoiseSource.from_seed(seed) where it is None.
    ValueError for options out of range, a grid with one time, a velocity that is infinite at a time, or a guidance
    that is not a gradient of a density's log alone.
    """
    tableau, estimate = METHODS.get(method), _trace(trace)
    if tableau is None:
        raise ValueError(f"unknown method {method!r}{suggest(str(method), list(METHODS))}")
    if prior not in ("centred", "standard"):
        raise ValueError(f"prior must be 'centred' or 'standard', got {prior!r}")
    if not bin_width > 0:
        raise ValueError(f"bin_width must be positive, got {bin_width}: 2 / 256 is for 8-bit data in [-1, 1]")
    if denoiser.required_outputs:
        raise ValueError(
            f"a guidance that speaks through {', '.join(sorted(denoiser.required_outputs))} has no ODE in x"
        )
    if grid is None and steps is None:
        steps = 100
    source: SupportsNormal = noise_source or NoiseSource.from_seed(seed, x.shape[0])
    with torch.inference_mode(False), torch.no_grad():  # autograd refuses tensors made in inference mode
        points = sampling_points(denoiser, steps, LogSNR() if grid is None else grid, "state")[::-1]
        _check_slopes(denoiser, variable, method, points)
        x = x.clone()
        run = RunContext(noise_source=source, steps=len(points))
        cond = denoiser.condition(labels, x.shape[0], x.device).in_run(run)
        flow = Flow(denoiser, cond, variable, estimate, source)
        latent, gained, calls = flow.run(tableau, x, points)
        std, centre = denoiser.process.prior_std(points[-1]), torch.zeros_like(latent)
        if prior == "centred" and points[-1].floats.alpha > 0:
            centre = points[-1].alpha * denoiser(std * source.normal("prior", 0, x), points[-1], cond).x0
            calls += 1
        log_prob = gaussian_log_prob(latent - centre, std) + gained
    dims = x[0].numel()
    return LogLikelihood(log_prob, -log_prob / (dims * math.log(2)) - math.log2(bin_width), latent, calls)


def gaussian_log_prob(x: Tensor, std: Tensor) -> Tensor:
    """log N(x; 0, std^2) of each sample in nats, (B,) float64."""
    squares = (x.double() / std).square() + 2 * std.log() + math.log(2 * math.pi)
    return -squares.flatten(1).sum(1) / 2


@dataclass(frozen=True)
class Flow:
    """The probability-flow ODE and the density along it: y = x / scale moves along `slope`, log p_y by -trace."""

    denoiser: Denoiser
    cond: Condition
    variable: ODEVariable
    trace: Trace
    noise_source: SupportsNormal

    def run(self, tableau: Tableau, x: Tensor, points: list[Scales]) -> tuple[Tensor, Tensor, int]:
        """(x at the last level, log p_first - log p_last in nats, evaluations), from x at the first level."""
        variable, process = self.variable, self.denoiser.process
        gained = x[0].numel() * (variable.scale(points[-1]) / variable.scale(points[0])).log()
        calls = 0
        for t, s in pairwise(points):
            y, h = x / variable.scale(t), variable.value(s) - variable.value(t)
            inner = [process.scales(variable.between(process, t, s, node)) for node in tableau.nodes]
            slopes, traces = [], []
            for row, k in zip(((), *tableau.stages), (t, *inner), strict=True):
                at = y + h * combined(row, slopes) if row else y
                slope, divergence = self.slope(variable.scale(k) * at, k, calls)
                slopes.append(slope)
                traces.append(divergence)
                calls += 1
            x = variable.scale(s) * (y + h * combined(tableau.weights, slopes))
            gained = gained + h * combined(tableau.weights, traces)
        return x, gained, calls

    def slope(self, x: Tensor, t: Scales, call: int) -> tuple[Tensor, Tensor]:
        """dy/du, (B, C, H, W), and its divergence in y, (B,), of the state x at t."""
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_()
            denoised: Denoised = self.denoiser(x, t, self.cond)
            slope = self.variable.slope(denoised)
            divergence = self.trace(slope, x, self.noise_source, call)
        return slope.detach(), self.variable.scale(t) * divergence


def dequantise(images: Tensor, noise_source: SupportsNormal) -> Tensor:
    """Pixels in [-1, 1] from uint8 images (B, C, H, W), float32, each anywhere in its level's bin of 2 / 256.

    noise_source: a NoiseSource; its stream is 'dequantise'. ValueError for another dtype.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"dequantise takes uint8 images, got {images.dtype}")
    pixels = images.double()
    return ((pixels + torch.special.ndtr(noise_source.normal("dequantise", 0, pixels))) * (2 / 256) - 1).float()


def _trace(trace: Trace | str) -> Trace:
    if isinstance(trace, Trace):
        return trace
    known = {"hutchinson": Hutchinson(), "exact": Exact()}
    if trace not in known:
        raise ValueError(f"unknown trace {trace!r}{suggest(str(trace), list(known))}")
    return known[trace]


def _check_slopes(denoiser: Denoiser, variable: ODEVariable, method: str, points: list[Scales]) -> None:
    asked = points if method in ("rk4", "heun") else points[:-1]
    if variable is TIME and not all(bool(k.d_sigma.isfinite()) for k in asked):
        raise ValueError(
            f"the velocity of {denoiser.process} is infinite at a time of the grid: use another variable"
        )
