"""Processes given by formulas in t: VP, sub-VP and VE (Song et al. 2021), EDM, linear flow, trigonometric."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dinit.diffusion.process import PROCESSES, Process, Scales, as_time, positive


@dataclass(frozen=True)
class _LinearBeta(Process):
    """Base of VP and sub-VP: d log(alpha) / dt = -beta(t) / 2 with beta linear in t.

    Args:
        beta_min: beta(0), positive.
        beta_max: beta(1), at least beta_min.

    Raises:
        ValueError: A number out of its range.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        positive(type(self).__name__, beta_min=self.beta_min, beta_max=self.beta_max)
        if self.beta_max < self.beta_min:
            raise ValueError(f"beta_max must be at least beta_min = {self.beta_min}, got {self.beta_max}")

    def beta(self, t: Tensor | float) -> Tensor:
        """beta(t) = beta_min + t (beta_max - beta_min). Song et al. 2021, Eq. 32."""
        return self.beta_min + as_time(t) * (self.beta_max - self.beta_min)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return -t * (t * (self.beta_max - self.beta_min) / 4 + self.beta_min / 2)

    def _time_of_log_alpha(self, log_alpha: Tensor) -> Tensor:
        # The positive root of the quadratic, in the form that does not cancel at small t.
        rise = self.beta_max - self.beta_min
        root = torch.sqrt(self.beta_min**2 / 4 - rise * log_alpha)
        return -2 * log_alpha / (self.beta_min / 2 + root)

    def prior_std(self, k: Scales) -> Tensor:
        return torch.ones_like(k.sigma)

    def noise_label(self, k: Scales) -> Tensor:
        """999 t, the label of score_sde's networks."""
        return 999 * k.time


@PROCESSES.register("vp")
@dataclass(frozen=True)
class VP(_LinearBeta):
    """Variance-preserving process with linear beta(t): alpha^2 + sigma^2 = 1. Song et al. 2021, Eq. 11.

    alpha = exp(-(beta_min t + (beta_max - beta_min) t^2 / 2) / 2). Source: arXiv:2011.13456.

    Args:
        beta_min: beta(0), positive.
        beta_max: beta(1), at least beta_min.
    """

    def scales(self, t: Tensor | float) -> Scales:
        t = as_time(t)
        log_alpha = self._log_alpha(t)
        alpha = log_alpha.exp()
        sigma = torch.expm1(2 * log_alpha).abs().sqrt()
        d_alpha = -self.beta(t) / 2 * alpha
        return Scales(t, alpha, sigma, d_alpha, -alpha * d_alpha / sigma)

    def log_snr(self, t: Tensor | float) -> Tensor:
        log_alpha = self._log_alpha(as_time(t))
        return 2 * log_alpha - (-torch.expm1(2 * log_alpha)).log()

    def time_of(self, log_snr: Tensor) -> Tensor:
        return self._time_of_log_alpha(-F.softplus(-as_time(log_snr), threshold=700) / 2)


@PROCESSES.register("sub-vp")
@dataclass(frozen=True)
class SubVP(_LinearBeta):
    """Sub-variance-preserving process: VP's alpha with sigma = 1 - alpha^2. Song et al. 2021, Eq. 29.

    Source: arXiv:2011.13456.

    Args:
        beta_min: beta(0), positive.
        beta_max: beta(1), at least beta_min.
    """

    def scales(self, t: Tensor | float) -> Scales:
        t = as_time(t)
        log_alpha = self._log_alpha(t)
        alpha = log_alpha.exp()
        d_alpha = -self.beta(t) / 2 * alpha
        return Scales(t, alpha, -torch.expm1(2 * log_alpha), d_alpha, -2 * alpha * d_alpha)

    def log_snr(self, t: Tensor | float) -> Tensor:
        log_alpha = self._log_alpha(as_time(t))
        return 2 * log_alpha - 2 * (-torch.expm1(2 * log_alpha)).log()

    def time_of(self, log_snr: Tensor) -> Tensor:
        # alpha / (1 - alpha^2) = 1 / (2 sinh(-log alpha))
        return self._time_of_log_alpha(-torch.asinh(torch.exp(-as_time(log_snr) / 2) / 2))


@PROCESSES.register("ve")
@dataclass(frozen=True)
class VE(Process):
    """Variance-exploding process, sigma geometric in t: alpha = 1, sigma(0) = sigma_min. Song et al. 2021, Eq. 30.

    sigma = sigma_min (sigma_max / sigma_min)^t. Source: arXiv:2011.13456.

    Args:
        sigma_min: Standard deviation of the noise at t = 0, in units of the data. Positive.
        sigma_max: That at t = 1, above sigma_min.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_sigmas("VE", self.sigma_min, self.sigma_max)

    def scales(self, t: Tensor | float) -> Scales:
        t = as_time(t)
        growth = math.log(self.sigma_max / self.sigma_min)
        # From both ends, so that sigma_min and sigma_max are met exactly.
        sigma = torch.where(t < 0.5, self.sigma_min * (growth * t).exp(), self.sigma_max * (growth * (t - 1)).exp())
        return Scales(t, torch.ones_like(t), sigma, torch.zeros_like(t), growth * sigma)

    def time_of(self, log_snr: Tensor) -> Tensor:
        growth = math.log(self.sigma_max / self.sigma_min)
        return (-as_time(log_snr) / 2 - math.log(self.sigma_min)) / growth

    def noise_label(self, k: Scales) -> Tensor:
        """sigma itself, the label of NCSN++."""
        return k.sigma

    @property
    def t_min(self) -> float:
        return 0.0  # sigma(0) = sigma_min > 0: t = 0 is not singular


@PROCESSES.register("edm")
@dataclass(frozen=True)
class EDM(Process):
    """EDM's process: alpha = 1, sigma = sigma_max t. Karras et al. 2022, whose time is sigma itself.

    Source: arXiv:2206.00364.

    Args:
        sigma_min: Standard deviation of the noise, in units of the data, at the cleanest time that networks are
            evaluated at. Positive.
        sigma_max: That at t = 1, above sigma_min.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_sigmas("EDM", self.sigma_min, self.sigma_max)

    def scales(self, t: Tensor | float) -> Scales:
        t = as_time(t)
        ones = torch.ones_like(t)
        return Scales(t, ones, self.sigma_max * t, torch.zeros_like(t), self.sigma_max * ones)

    def time_of(self, log_snr: Tensor) -> Tensor:
        return torch.exp(-as_time(log_snr) / 2) / self.sigma_max

    def noise_label(self, k: Scales) -> Tensor:
        """log(sigma) / 4. Karras et al. 2022, Table 1."""
        return k.sigma.log() / 4

    @property
    def t_min(self) -> float:
        return self.sigma_min / self.sigma_max


@PROCESSES.register("flow", aliases=("rectified-flow",))
@dataclass(frozen=True)
class LinearFlow(Process):
    """Straight path x_t = (1 - sigma) x0 + sigma eps (rectified flow), its time warped by a resolution shift.

    sigma = shift t / (1 + (shift - 1) t). Liu et al. 2023, arXiv:2209.03003; the shift is Eq. 23 of Esser et al.
    2024, arXiv:2403.03206.

    Args:
        shift: Positive. 1 is the plain path; larger values spend more time at high noise (large images).
    """

    shift: float = 1.0

    def __post_init__(self) -> None:
        positive("LinearFlow", shift=self.shift)

    def scales(self, t: Tensor | float) -> Scales:
        t = as_time(t)
        warp = 1 + (self.shift - 1) * t
        speed = self.shift / warp**2
        return Scales(t, (1 - t) / warp, self.shift * t / warp, -speed, speed)

    def time_of(self, log_snr: Tensor) -> Tensor:
        half = as_time(log_snr) / 2
        sigma, alpha = torch.sigmoid(-half), torch.sigmoid(half)
        return sigma / (sigma + self.shift * alpha)

    def noise_label(self, k: Scales) -> Tensor:
        """1000 sigma, the label of diffusers' flow-matching transformers."""
        return 1000 * k.sigma


@PROCESSES.register("gvp")
@dataclass(frozen=True)
class GVP(Process):
    """Trigonometric process, variance preserving. Albergo et al. 2023.

    alpha = cos(pi t / 2), sigma = sin(pi t / 2). Source: arXiv:2303.08797.
    """

    def scales(self, t: Tensor | float) -> Scales:
        t = as_time(t)
        quarter = math.pi / 2
        # The sine of the complement is exactly 0 at t = 1, where the cosine would leave 6e-17.
        alpha, sigma = torch.sin(quarter * (1 - t)), torch.sin(quarter * t)
        return Scales(t, alpha, sigma, -quarter * sigma, quarter * alpha)

    def time_of(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-as_time(log_snr) / 2)) * (2 / math.pi)

    def prior_std(self, k: Scales) -> Tensor:
        return torch.ones_like(k.sigma)


def _check_sigmas(owner: str, sigma_min: float, sigma_max: float) -> None:
    positive(owner, sigma_min=sigma_min, sigma_max=sigma_max)
    if sigma_max <= sigma_min:
        raise ValueError(f"{owner}: sigma_max must be above sigma_min = {sigma_min}, got {sigma_max}")
