"""Log-likelihood by the probability-flow ODE. Song et al. 2021 (score SDE), Section 4.3; Grathwohl et al. 2019.

    found = log_likelihood(denoiser, x, labels=[3, 1], steps=100)
    found.bits_per_dim                                                  # (2,)
    x = RK4().sample(denoiser, found.latent, 100, grid="log-snr", initial_state=found.latent, end="state")  # back

The density is that of the state at the grid's last time, t_min: of the data with that little noise. Published
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
from dinit.samplers.ode.runge_kutta import EULER, MIDPOINT, RK4_CLASSIC, TRAPEZOID, Tableau, combined
from dinit.samplers.points import GridLike, sampling_points

Probe = Literal["rademacher", "gaussian"]
METHODS = {"euler": EULER, "midpoint": MIDPOINT, "heun": TRAPEZOID, "rk4": RK4_CLASSIC}


@dataclass(frozen=True)
class LogLikelihood:
    """Log-likelihood of a batch.

    Attributes:
        log_prob: (B,) float64, nats.
        bits_per_dim: (B,) float64.
        latent: (B, C, H, W), x carried to the noise.
        nfe: Network evaluations per image; each is followed by one backward pass a probe, or one a dimension.
    """

    log_prob: Tensor
    bits_per_dim: Tensor
    latent: Tensor
    nfe: int


class Trace(ABC):
    """A method for the divergence of a vector field, from vector-Jacobian products."""

    @abstractmethod
    def __call__(self, slope: Tensor, x: Tensor, noise_source: SupportsNormal, call: int) -> Tensor:
        """tr d slope / dx of each sample, (B,).

        Args:
            slope: (B, ...), computed from x with gradients.
            x: (B, ...), with requires_grad.
            noise_source: Of random probes.
            call: Number of the evaluation within the run.
        """


@dataclass(frozen=True)
class Exact(Trace):
    """The exact trace: the sum of the diagonal, one backward pass a dimension."""

    def __call__(self, slope: Tensor, x: Tensor, noise_source: SupportsNormal, call: int) -> Tensor:
        size = x[0].numel()
        total = torch.zeros(x.shape[0], dtype=torch.float64, device=x.device)
        for i in range(size):
            (row,) = torch.autograd.grad(slope.flatten(1)[:, i].sum(), x, retain_graph=i < size - 1)
            total = total + row.flatten(1)[:, i]
        return total


@dataclass(frozen=True)
class Hutchinson(Trace):
    """Hutchinson's unbiased estimate of the trace: the mean of v^T J v over probes v of unit covariance.

    Probes are draws of the stream 'probe'. Hutchinson 1990; Grathwohl et al. 2019 (FFJORD); arXiv:1810.01367.

    Args:
        probe: 'rademacher' (signs), of the smaller variance, or 'gaussian'.
        probes: Number of probes, at least 1, each one backward pass.
        fresh: Other probes at every evaluation, as in SiT, so that their errors average out over the run; False is
            one set for the whole run, as in FFJORD, which an adaptive solver needs.

    Raises:
        ValueError: Another kind of probe; fewer than one.
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
    """Log-likelihood log p(x | labels) of a batch, its bits/dim, and the noise that x is carried to.

    Song et al. 2021 (score SDE), Section 4.3; arXiv:2011.13456.

    Args:
        denoiser: A network read as a posterior mean, or a guidance that changes x0 alone.
        x: (B, C, H, W) float32 or float64, the state at the grid's last time.
        steps: The number of times; None for the grid's own, or 100.
        labels: (B,) class labels; None for the denoiser's own, or null.
        grid: A TimeGrid, a registered name or mapping, or decreasing times in [0, 1], the last of which is that of
            x; None is uniform in log-SNR.
        trace: How the divergence is found: 'hutchinson' (one Rademacher probe for the run), 'exact', or an object.
        method: Runge–Kutta method between times.
        variable: What its steps are taken in.
        prior: The Gaussian whose density the latent gets. 'standard' is published practice and has mean 0, though
            a mean m of the data leaves alpha m at t_max: an error of 1e-3 bits/dim and more on VE. 'centred' takes
            m from the network, at noise that is independent of the latent.
        bin_width: Of one level of the data, positive, in units of x; bits/dim is -log2 p(x) / D - log2(bin_width).
            2 / 256 (+ 7 bits) is for [-1, 1], 1 / 256 (+ 8) for [0, 1], 1 for a density.
        noise_source: Of probes; None for `NoiseSource.from_seed(seed)`.
        seed: Of the noise source, where none is given: one seed, or one an image.

    Returns:
        The log-likelihood, with the latent and the number of evaluations.

    Raises:
        ValueError: An option out of its range; a grid with one time; a velocity that is infinite at a time; a
            guidance that returns more than x0, which has no ODE in x.
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
            f"a guidance that returns {', '.join(sorted(denoiser.required_outputs))} besides x0 has no ODE in x: "
            "leave it out, or take another guidance"
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
    """The probability-flow ODE and the density along it: dy/du = slope for y = x / scale, d log p_y / du = -trace.

    Attributes:
        denoiser: What the ODE is of.
        cond: Its condition.
        variable: The change of variables: u, and the scale.
        trace: How the divergence is found.
        noise_source: Of random probes.
    """

    denoiser: Denoiser
    cond: Condition
    variable: ODEVariable
    trace: Trace
    noise_source: SupportsNormal

    def run(self, tableau: Tableau, x: Tensor, points: list[Scales]) -> tuple[Tensor, Tensor, int]:
        """(x at the last time, log p_first - log p_last in nats, evaluations), from x at the first time."""
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
    """Dequantised pixels in [-1, 1], float32: each uniform in its level's bin of 2 / 256. Theis et al. 2016.

    Args:
        images: (B, C, H, W) uint8.
        noise_source: Of the draws, by its stream 'dequantise'.

    Raises:
        ValueError: Images of another dtype.
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
    evaluated = points if 1 in METHODS[method].nodes else points[:-1]
    if variable is TIME and not all(bool(k.d_sigma.isfinite()) for k in evaluated):
        raise ValueError(
            f"the velocity of {denoiser.process} is infinite at a time of the grid: use another variable"
        )
