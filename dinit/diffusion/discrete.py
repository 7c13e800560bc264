"""Discrete chains (DDPM, SMLD), read continuously in t by interpolation between their timesteps."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinit.devices import upload
from dinit.diffusion.continuous import VE
from dinit.diffusion.process import PROCESSES, Process, Scales, as_time
from dinit.registry import suggest

Schedule = Literal["linear", "scaled-linear", "cosine", "squared-cosine"]
_SCHEDULES = ["linear", "scaled-linear", "cosine", "squared-cosine"]


def beta_schedule(
    schedule: Schedule, num_steps: int, beta_start: float | None = None, beta_end: float | None = None
) -> Tensor:
    """The betas of a DDPM noise schedule.

    Args:
        schedule: 'linear': equally spaced, Ho et al. 2020; the default ends are 1e-4 and 0.02 at 1000 timesteps
            and scale with 1000 / num_steps. 'scaled-linear': linear in the square root (latent diffusion), 0.00085
            to 0.012. 'cosine', also called 'squared-cosine': Nichol & Dhariwal 2021, Eq. 17, each beta at most
            0.999.
        num_steps: Timesteps of the chain, at least 1.
        beta_start: The first beta, at the clean end; None is the schedule's default.
        beta_end: The last; None is the schedule's default.

    Returns:
        (num_steps,) float64 in (0, 1).

    Raises:
        ValueError: An unknown schedule, a number out of its range, or betas outside (0, 1).
    """
    if schedule not in _SCHEDULES:
        raise ValueError(f"unknown beta schedule {schedule!r}{suggest(str(schedule), _SCHEDULES)}")
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise ValueError(f"num_steps must be a whole number, at least 1; got {num_steps!r}")
    for name, beta in (("beta_start", beta_start), ("beta_end", beta_end)):
        if beta is not None and not (isinstance(beta, (int, float)) and 0 < beta < 1):
            raise ValueError(f"{name}, like all betas, must lie in (0, 1), got {beta!r}")
    if schedule in ("cosine", "squared-cosine"):
        if beta_start is not None or beta_end is not None:
            raise ValueError(f"the {schedule} schedule has no beta_start and beta_end")
        i = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
        alpha_bar = torch.cos((i + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
    if schedule == "linear":
        scale = 1000 / num_steps
        start, end = beta_start or 1e-4 * scale, beta_end or 0.02 * scale
        betas = torch.linspace(start, end, num_steps, dtype=torch.float64)
    else:
        start, end = beta_start or 0.00085, beta_end or 0.012
        betas = torch.linspace(math.sqrt(start), math.sqrt(end), num_steps, dtype=torch.float64) ** 2
    if not (betas.min() > 0 and betas.max() < 1):
        raise ValueError(
            f"betas must lie in (0, 1); {schedule} with {num_steps} steps from {start:g} to {end:g} does not"
        )
    return betas


class BetaChain(Process):
    """Base of variance-preserving discrete chains, whatever gives them their betas.

    Timestep i = 0 .. num_steps - 1 stands at t = (i + 1) / num_steps, and t = 0 is clean data (alpha = 1), so a
    step onto t = 0 is the chain's last one. Between timesteps log alpha is a monotone cubic spline in t: it meets
    every timestep exactly and has the continuous derivatives that solvers of high order need.

    Attributes:
        zero_terminal_snr: Whether the chain is rescaled so that alpha is exactly 0 at t = 1. Lin et al. 2023,
            Algorithm 1, arXiv:2305.08891. In the last interval alpha itself is then linear in t, since log alpha
            ends at -inf.
    """

    zero_terminal_snr: bool

    @property
    @abstractmethod
    def _betas(self) -> Tensor:
        """(num_steps,) float64, before any rescaling."""

    @cached_property
    def alphas(self) -> Tensor:
        """alpha at the timesteps, (num_steps,) float64, decreasing (the square root of DDPM's alpha-bar)."""
        alphas = (torch.log1p(-self._betas).cumsum(0) / 2).exp()
        if self.zero_terminal_snr:
            alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
        return alphas

    @cached_property
    def _knots(self) -> tuple[Tensor, Tensor]:
        """log alpha and its slope per timestep at t = 0, 1/T, .., over the timesteps where alpha is positive."""
        alphas = self.alphas[:-1] if self.zero_terminal_snr else self.alphas
        values = torch.cat([torch.zeros(1, dtype=torch.float64), alphas.log()])
        return values, _monotone_slopes(values)

    def scales(self, t: Tensor | float) -> Scales:
        t = as_time(t)
        values, slopes = (upload(v, t.device) for v in self._knots)
        position = t * self.num_steps
        left = position.floor().clamp(0, len(values) - 2).long()
        log_alpha, d_log_alpha = _hermite(values, slopes, left, position - left)
        alpha = log_alpha.exp()
        d_alpha = self.num_steps * d_log_alpha * alpha
        if self.zero_terminal_snr:
            tail = position > self.num_steps - 1
            last = values[-1].exp()
            alpha = torch.where(tail, last * (self.num_steps - position), alpha)
            d_alpha = torch.where(tail, -last * self.num_steps, d_alpha)
            log_alpha = alpha.log()
        sigma = torch.expm1(2 * log_alpha).abs().sqrt()
        return Scales(t, alpha, sigma, d_alpha, -alpha * d_alpha / sigma)

    def time_of(self, log_snr: Tensor) -> Tensor:
        target = -F.softplus(-as_time(log_snr), threshold=700) / 2  # log alpha
        values, slopes = (upload(v, target.device) for v in self._knots)
        left = (torch.searchsorted(-values, -target, right=True) - 1).clamp(0, len(values) - 2)
        position = left + _hermite_inverse(values, slopes, left, target)
        if self.zero_terminal_snr:
            tail = self.num_steps - target.exp() / values[-1].exp()
            position = torch.where(target < values[-1], tail, position)
        return position / self.num_steps

    def prior_std(self, k: Scales) -> Tensor:
        return torch.ones_like(k.sigma)

    def noise_label(self, k: Scales) -> Tensor:
        """The timestep's index, 0 .. num_steps - 1 (fractional between timesteps)."""
        return k.time * self.num_steps - 1

    @property
    def t_min(self) -> float:
        return 1 / self.num_steps


@PROCESSES.register("vp-discrete")
@dataclass(frozen=True)
class VPDiscrete(BetaChain):
    """DDPM's variance-preserving chain, read continuously in t as `BetaChain` describes. Ho et al. 2020.

    Source: arXiv:2006.11239.

    Args:
        schedule: 'linear', 'scaled-linear' or 'cosine' (also 'squared-cosine'); see `beta_schedule`.
        num_steps: Timesteps of the chain, at least 1.
        beta_start: The first beta, at the clean end; None is the schedule's default.
        beta_end: The last; None is the schedule's default.
        zero_terminal_snr: Whether alpha is rescaled to be exactly 0 at t = 1, which needs at least 2 timesteps.

    Raises:
        ValueError: An option out of its range, or betas outside (0, 1).
    """

    schedule: Schedule = "linear"
    num_steps: int = 1000  # type: ignore[assignment]
    beta_start: float | None = None
    beta_end: float | None = None
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        beta_schedule(self.schedule, self.num_steps, self.beta_start, self.beta_end)
        if self.zero_terminal_snr and self.num_steps < 2:
            raise ValueError("zero_terminal_snr needs at least 2 timesteps")

    @property
    def _betas(self) -> Tensor:
        return beta_schedule(self.schedule, self.num_steps, self.beta_start, self.beta_end)


@PROCESSES.register("vp-betas")
@dataclass(frozen=True, repr=False)
class VPBetas(BetaChain):
    """Variance-preserving chain with given betas, read in t as `BetaChain` describes. Ho et al. 2020.

    Args:
        betas: One a timestep, in (0, 1), at least 2; the default is DDPM's. The last may be 1, which leaves no
            signal at t = 1 and needs zero_terminal_snr.
        zero_terminal_snr: Whether alpha is rescaled to be exactly 0 at t = 1.

    Raises:
        ValueError: Too few betas, or one out of its range.
    """

    betas: tuple[float, ...] = field(default_factory=lambda: tuple(beta_schedule("linear", 1000).tolist()))
    zero_terminal_snr: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(beta) for beta in self.betas))  # a list, out of a JSON file
        if len(self.betas) < 2:
            raise ValueError(f"vp-betas needs at least 2 betas, got {len(self.betas)}")
        inner = self.betas[:-1] if self.zero_terminal_snr and self.betas[-1] == 1 else self.betas
        outside = [beta for beta in inner if not 0 < beta < 1]
        if outside:
            raise ValueError(
                f"vp-betas: betas must lie in (0, 1), got {outside[0]:g}; a last beta of 1 needs zero_terminal_snr"
            )

    @property
    def num_steps(self) -> int:
        return len(self.betas)

    @property
    def _betas(self) -> Tensor:
        return torch.tensor(self.betas, dtype=torch.float64)

    def __repr__(self) -> str:
        ends = f"{self.betas[0]:g} .. {self.betas[-1]:g}"
        return f"VPBetas({self.num_steps} betas {ends}, zero_terminal_snr={self.zero_terminal_snr})"


@PROCESSES.register("ve-discrete")
@dataclass(frozen=True)
class VEDiscrete(VE):
    """VE whose network takes a timestep's index in place of sigma. Song & Ermon 2019; Song et al. 2021, SMLD.

    The num_steps noise levels fall geometrically: index 0 is sigma_max at t = 1, index num_steps - 1 is sigma_min
    at t = 0. Between them the index is fractional and sigma stays geometric, so the path is VE's at every t.

    Args:
        sigma_min: Standard deviation of the noise at t = 0, in units of the data. Positive.
        sigma_max: That at t = 1, above sigma_min.
        num_steps: Timesteps of the chain, at least 2.

    Raises:
        ValueError: A number out of its range.
    """

    num_steps: int = 1000  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_steps < 2:
            raise ValueError(f"VEDiscrete: num_steps must be at least 2, got {self.num_steps}")

    def noise_label(self, k: Scales) -> Tensor:
        """The timestep's index, 0 at sigma_max to num_steps - 1 at sigma_min (fractional between timesteps)."""
        return (self.num_steps - 1) * (1 - k.time)


def _hermite(values: Tensor, slopes: Tensor, left: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """Value and derivative at left + u of the cubic through (values, slopes) at left and left + 1; u in [0, 1]."""
    y0, y1, m0, square, cube = _cubic(values, slopes, left)
    # At a right knot the exact value is returned: solvers rely on the published alpha, not on it ± 1 ulp.
    value = torch.where(u == 1, y1, y0 + u * (m0 + u * (square + u * cube)))
    return value, m0 + u * (2 * square + 3 * u * cube)


def _cubic(values: Tensor, slopes: Tensor, left: Tensor) -> tuple[Tensor, ...]:
    """y0, y1 and the coefficients of u, u^2 and u^3 in the cubic from y0 to y1 with slopes m0 and m1 there."""
    y0, y1 = torch.take(values, left), torch.take(values, left + 1)
    m0, m1 = torch.take(slopes, left), torch.take(slopes, left + 1)
    rise = y1 - y0
    return y0, y1, m0, 3 * rise - 2 * m0 - m1, m0 + m1 - 2 * rise


def _hermite_inverse(values: Tensor, slopes: Tensor, left: Tensor, target: Tensor) -> Tensor:
    """u in [0, 1] at which the decreasing cubic of `_hermite` is nearest to target.

    One binary digit after the other: the cubic is monotone, but may be nearly flat where Newton's steps stall.
    """
    y0, _, m0, square, cube = _cubic(values, slopes, left)
    if not target.is_cpu or target.requires_grad:
        return _digits(y0, m0, square, cube, target, torch.zeros_like(target))
    # A run has few times, and NumPy has half the overhead.
    given = (y0, m0, square, cube, target, torch.zeros_like(target))
    return torch.from_numpy(np.asarray(_digits(*(v.numpy() for v in given))))


def _digits(y0: Any, m0: Any, square: Any, cube: Any, target: Any, u: Any) -> Any:
    for digit in range(1, 56):
        further = u + 2.0**-digit
        above = y0 + further * (m0 + further * (square + further * cube)) > target
        u = u + above * 2.0**-digit
    return u


def _monotone_slopes(values: Tensor) -> Tensor:
    """Knot slopes, on unit spacing, of the cubic spline through decreasing values, limited to stay monotone.

    The spline has a continuous second derivative, which solvers above second order need. Its slopes solve
    m[i-1] + 4 m[i] + m[i+1] = 3 (y[i+1] - y[i-1]), with one-sided differences at the ends. Where values bend too
    sharply (the clipped end of the cosine schedule), a slope is held within three of its neighbouring secants,
    which keeps both intervals monotone (Fritsch & Carlson 1980).
    """
    secants = values.diff()
    if len(values) < 4:
        return torch.cat([secants[:1], secants]) if len(values) < 3 else _between(secants)
    y = values.tolist()
    inner = [3 * (right - left) for left, right in zip(y, y[2:], strict=False)]
    slopes = [_one_sided(y[:4]), *inner, -_one_sided(y[:-5:-1])]
    upper = [0.0]  # of the eliminated tridiagonal system, whose end slopes are known
    for i in range(1, len(y) - 1):
        pivot = 4 - upper[-1]
        upper.append(1 / pivot)
        slopes[i] = (slopes[i] - slopes[i - 1]) / pivot
    for i in range(len(y) - 2, 0, -1):
        slopes[i] -= upper[i] * slopes[i + 1]
    steepest = 3 * torch.maximum(torch.cat([secants[:1], secants]), torch.cat([secants, secants[-1:]]))
    found = torch.tensor(slopes, dtype=values.dtype)
    return torch.minimum(torch.maximum(found, steepest), torch.zeros_like(found))


def _one_sided(y: list[float]) -> float:
    """The slope at the first of four equally spaced values, exact for a cubic."""
    return (-11 * y[0] + 18 * y[1] - 9 * y[2] + 2 * y[3]) / 6


def _between(secants: Tensor) -> Tensor:
    """Slopes at three knots: their secants, and the harmonic mean in the middle."""
    return torch.stack([secants[0], 2 * secants.prod() / secants.sum(), secants[1]])
