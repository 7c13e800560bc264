"""Parameterizations of a network's output: a pair of coefficients (p, q) with output = p x0 + q eps.

With x_t = alpha x0 + sigma eps that is two equations in two unknowns, so one solve reads any output as the
posterior mean. Its determinant q alpha - p sigma is zero where the output does not determine x0.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dinit.diffusion.process import Process, Scales, expand_all, positive
from dinit.registry import Registry

PARAMETERIZATIONS: Registry[type[Parameterization]] = Registry("parameterization", "dinit.diffusion")

Pair = tuple[Tensor, Tensor]


class Parameterization(ABC):
    """Meaning of a network's output, (p, q), at the scales of a time, with its input scale and time input."""

    registry_name: ClassVar[str]  # of a registered class

    @abstractmethod
    def coefficients(self, k: Scales) -> Pair:
        """(p, q) with output = p x0 + q eps, each of k.time's shape."""

    def input_scale(self, k: Scales) -> Tensor:
        """The factor on x_t before it enters the network, at the scales k."""
        return torch.ones_like(k.alpha)

    def noise_label(self, process: Process, k: Scales) -> Tensor:
        """The network's time input: the usual label of its process, unless a subclass has its own.

        Args:
            process: The process of the network.
            k: The scales of the time.

        Returns:
            Of k.time's shape.
        """
        return process.noise_label(k)

    def target(self, x0: Tensor, eps: Tensor, k: Scales) -> Tensor:
        """The output that the network is trained to give.

        Args:
            x0: Clean images, (B, C, H, W).
            eps: Their noise, (B, C, H, W).
            k: The scales, from `Scales.like(x0)`.

        Returns:
            (B, C, H, W).
        """
        p, q = self.coefficients(k)
        return p * x0 + q * eps

    def posterior_mean_coefficients(self, k: Scales) -> Pair:
        """Coefficients (a, b) with x0 = a x_t + b output: the solution of the 2×2 system.

        At sigma = 0 it is (1 / alpha, 0) for every pair: x_t is alpha x0 there, whatever the output is.

        Args:
            k: The scales of the time.

        Returns:
            a and b, each of k.time's shape.
        """
        p, q = self.coefficients(k)
        determinant = q * k.alpha - p * k.sigma
        clean = k.sigma == 0
        a = torch.where(clean, 1 / k.alpha, q / determinant)
        return a, torch.where(clean, torch.zeros_like(k.sigma), -k.sigma / determinant)

    def posterior_mean(self, output: Tensor, x_t: Tensor, k: Scales) -> Tensor:
        """E[x0 | x_t] from the network's output.

        Args:
            output: (B, C, H, W).
            x_t: The noisy batch, (B, C, H, W).
            k: The scales, from `Scales.like(x_t)`.

        Returns:
            (B, C, H, W).
        """
        a, b = self.posterior_mean_coefficients(k)
        return a * x_t + b * output

    def singular(self, k: Scales) -> bool:
        """Whether the output cannot be read as a posterior mean at the scales k (any of them)."""
        a, b = self.posterior_mean_coefficients(k)
        return not bool((a.isfinite() & b.isfinite()).all())

    def to_config(self) -> dict[str, Any]:
        """A mapping of plain values that `PARAMETERIZATIONS.create` turns back into this object."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {"name": self.registry_name, **fields}


@PARAMETERIZATIONS.register("epsilon", aliases=("eps", "noise"))
@dataclass(frozen=True)
class Epsilon(Parameterization):
    """Noise prediction: (p, q) = (0, 1). Ho et al. 2020, arXiv:2006.11239. Singular where alpha = 0."""

    def coefficients(self, k: Scales) -> Pair:
        return torch.zeros_like(k.alpha), torch.ones_like(k.alpha)


@PARAMETERIZATIONS.register("x0", aliases=("sample", "x-start"))
@dataclass(frozen=True)
class X0(Parameterization):
    """Prediction of the clean image: (p, q) = (1, 0). Never singular for sigma > 0."""

    def coefficients(self, k: Scales) -> Pair:
        return torch.ones_like(k.alpha), torch.zeros_like(k.alpha)


@PARAMETERIZATIONS.register("v", aliases=("v-prediction",))
@dataclass(frozen=True)
class V(Parameterization):
    """v prediction, v = alpha eps - sigma x0: (p, q) = (-sigma, alpha). Salimans & Ho 2022. Never singular.

    Source: arXiv:2202.00512.
    """

    def coefficients(self, k: Scales) -> Pair:
        return -k.sigma, k.alpha


@PARAMETERIZATIONS.register("velocity")
@dataclass(frozen=True)
class Velocity(Parameterization):
    """Velocity of the path, dx/dt: (p, q) = (alpha', sigma'). Lipman et al. 2023.

    It determines x0 wherever the log-SNR falls. Source: arXiv:2210.02747.
    """

    def coefficients(self, k: Scales) -> Pair:
        return k.d_alpha, k.d_sigma


class _ReversedTime(Parameterization):
    """Base of networks whose time runs from noise (0) to data (1): the time input is 1 - t."""

    def noise_label(self, process: Process, k: Scales) -> Tensor:
        return 1 - k.time


@PARAMETERIZATIONS.register("reversed-velocity")
@dataclass(frozen=True)
class ReversedVelocity(_ReversedTime):
    """Velocity of a time from noise (0) to data (1): (p, q) = (-alpha', -sigma'), with the time input 1 - t.

    The convention of SiT and LightningDiT, whose velocity on the linear path is data minus noise. Ma et al. 2024,
    arXiv:2401.08740.
    """

    def coefficients(self, k: Scales) -> Pair:
        return -k.d_alpha, -k.d_sigma


@PARAMETERIZATIONS.register("difference")
@dataclass(frozen=True)
class Difference(Parameterization):
    """Difference eps - x0: (p, q) = (-1, 1). Liu et al. 2023; Esser et al. 2024. Never singular.

    On the straight path it is dx / dsigma. 'velocity' is dx / dt, which is the same for a shift of 1 and differs
    by the factor dsigma / dt for any other. Source: arXiv:2209.03003, arXiv:2403.03206.
    """

    def coefficients(self, k: Scales) -> Pair:
        return -torch.ones_like(k.alpha), torch.ones_like(k.alpha)


@PARAMETERIZATIONS.register("score")
@dataclass(frozen=True)
class Score(Parameterization):
    """Score, the gradient of log p_t: (p, q) = (0, -1 / sigma). Song et al. 2021. Singular where alpha = 0."""

    def coefficients(self, k: Scales) -> Pair:
        return torch.zeros_like(k.alpha), -1 / k.sigma


@PARAMETERIZATIONS.register("reversed-epsilon")
@dataclass(frozen=True)
class ReversedEpsilon(_ReversedTime, Epsilon):
    """Noise prediction with a time from noise (0) to data (1): (p, q) = (0, 1), with the time input 1 - t.

    SiT's `--prediction noise`. Singular where alpha = 0. Ma et al. 2024, arXiv:2401.08740.
    """


@PARAMETERIZATIONS.register("reversed-score")
@dataclass(frozen=True)
class ReversedScore(_ReversedTime, Score):
    """Score with a time from noise (0) to data (1): (p, q) = (0, -1 / sigma), with the time input 1 - t.

    SiT's `--prediction score`. Singular where alpha = 0. Ma et al. 2024, arXiv:2401.08740.
    """


@PARAMETERIZATIONS.register("edm")
@dataclass(frozen=True)
class EDMPreconditioning(Parameterization):
    """EDM's preconditioning for any path: output and input of unit variance at every t. Karras et al. 2022.

    With V = sigma^2 + alpha^2 sigma_data^2: c_in = V^-1/2, c_skip = alpha sigma_data^2 / V, c_out = sigma
    sigma_data V^-1/2, which at alpha = 1 is the paper's Table 1. F = (x0 - c_skip x_t) / c_out is the pair (sigma /
    sigma_data, -alpha sigma_data) V^-1/2. Never singular. Source: arXiv:2206.00364.

    Args:
        sigma_data: Standard deviation of the data, positive.

    Raises:
        ValueError: sigma_data is not positive.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        positive("edm parameterization", sigma_data=self.sigma_data)

    def coefficients(self, k: Scales) -> Pair:
        c_in = self.input_scale(k)
        return c_in * k.sigma / self.sigma_data, -c_in * k.alpha * self.sigma_data

    def input_scale(self, k: Scales) -> Tensor:
        return (k.sigma**2 + k.alpha**2 * self.sigma_data**2).rsqrt()


@dataclass(frozen=True)
class Preconditioning:
    """Preconditioning: factors on a network's input and output at some times, for training and sampling alike.

        network input  = input_scale x_t, with noise_label for the time
        target         = p x0 + q eps
        posterior mean = a x_t + b output

    Args:
        noise_label: The network's time input, of the times' shape.
        input_scale: Factor on x_t.
        p: Coefficient of x0 in the output.
        q: Coefficient of eps in the output.
        a: Coefficient of x_t in the posterior mean.
        b: Coefficient of the output in the posterior mean.
    """

    noise_label: Tensor
    input_scale: Tensor
    p: Tensor
    q: Tensor
    a: Tensor
    b: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All fields, in their order."""
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def like(self, x: Tensor) -> Preconditioning:
        """The factors in a form that broadcasts against x (B, ...); the noise label stays as it is."""
        if self.input_scale.ndim == 0:
            return self
        return Preconditioning(self.noise_label, *expand_all(self.tensors[1:], x))

    def target(self, x0: Tensor, eps: Tensor) -> Tensor:
        """The output that the network is trained to give, (B, C, H, W)."""
        return self.p * x0 + self.q * eps

    def posterior_mean(self, output: Tensor, x_t: Tensor) -> Tensor:
        """E[x0 | x_t] from the network's output, (B, C, H, W)."""
        return self.a * x_t + self.b * output


def precondition(process: Process, parameterization: Parameterization, scales: Scales) -> Preconditioning:
    """The preconditioning of a network at given scales, for training and for sampling.

    Args:
        process: The process of the network.
        parameterization: The meaning of its output.
        scales: The scales of the time or times.

    Returns:
        Factors in the scales' dtype and shape.
    """
    p, q = parameterization.coefficients(scales)
    a, b = parameterization.posterior_mean_coefficients(scales)
    label, scale = parameterization.noise_label(process, scales), parameterization.input_scale(scales)
    return Preconditioning(label, scale, p, q, a, b)


def split_variance(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """The prediction in a network's output, and the variance that it learned.

    Args:
        output: (B, C, H, W), or (B, 2C, H, W) where the network learned its variance (Nichol & Dhariwal 2021,
            Section 3.1): the last C channels are v in [-1, 1] there.
        channels: C.

    Returns:
        The prediction (B, C, H, W), and the fraction (v + 1) / 2 as in `Denoised.variance_fraction`, or None.
    """
    if output.shape[1] != 2 * channels:
        return output, None
    prediction, v = output.chunk(2, dim=1)
    return prediction, (v + 1) / 2


def check_pair(process: Process, parameterization: Parameterization, t_max: float = 1.0) -> None:
    """Check that the network's output can be read at the noisy end of the process.

    Args:
        process: The process.
        parameterization: The meaning of the network's output.
        t_max: The noisy end, in (0, 1].

    Raises:
        ValueError: It cannot, or t_max is out of its range.
    """
    if not 0 < t_max <= 1:
        raise ValueError(f"t_max must be in (0, 1], got {t_max}")
    if parameterization.singular(process.scales(t_max)):
        name = getattr(parameterization, "registry_name", type(parameterization).__name__)
        raise ValueError(
            f"parameterization {name!r} is singular at t = {t_max:g} of {process}: x_t holds no signal there "
            f"(alpha = 0), so {name} does not determine x0. Use 'v', 'x0', 'velocity' or 'edm', or stop short "
            "of pure noise with t_max = 0.999"
        )
