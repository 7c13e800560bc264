"""Loss weightings: the weight of each time in the loss.

The loss is the squared error of the network's output. The error of the posterior mean differs from it by a factor:
x0 = a x_t + b output, so |error of x0|^2 = b^2 |error of output|^2. A weight w(t) that a paper states for the error
of x0 is therefore w b^2 on the output, whatever the network predicts. For an epsilon network b^2 is 1 / snr, so
'snr' is Ho et al.'s plain mean squared error of the noise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dinit.diffusion import Scales
from dinit.diffusion.process import positive
from dinit.registry import Registry

WEIGHTINGS: Registry[type[Weighting]] = Registry("weighting", "dinit.training.losses")


class Weighting(ABC):
    """A weight for each time. Subclasses are frozen dataclasses."""

    @abstractmethod
    def on_output(self, k: Scales, b: Tensor) -> Tensor:
        """The factor on the squared error of the network's output.

        Args:
            k: Scales at the training times.
            b: The coefficient of the output in x0, from Parameterization.posterior_mean_coefficients; float64 of
                k.time's shape.

        Returns:
            float64 of k.time's shape.
        """


class _OnPosteriorMean(Weighting):
    """A weight stated for the squared error of x0."""

    @abstractmethod
    def on_x0(self, k: Scales) -> Tensor:
        """The factor on the squared error of the posterior mean."""

    def on_output(self, k: Scales, b: Tensor) -> Tensor:
        return b**2 * self.on_x0(k)


@WEIGHTINGS.register("uniform")
@dataclass(frozen=True)
class UniformWeighting(Weighting):
    """Weight 1 on the error of the network's output, whatever it predicts: the plain mean squared error."""

    def on_output(self, k: Scales, b: Tensor) -> Tensor:
        return torch.ones_like(b)


@WEIGHTINGS.register("x0")
@dataclass(frozen=True)
class PosteriorMeanWeighting(_OnPosteriorMean):
    """Weight 1 on the error of x0 at every time."""

    def on_x0(self, k: Scales) -> Tensor:
        return torch.ones_like(k.alpha)


@WEIGHTINGS.register("snr")
@dataclass(frozen=True)
class SNRWeighting(_OnPosteriorMean):
    """Weight snr on the error of x0, which is 1 on that of the noise. Ho et al. 2020 (simple), arXiv:2006.11239."""

    def on_x0(self, k: Scales) -> Tensor:
        return _snr(k)


@WEIGHTINGS.register("min-snr")
@dataclass(frozen=True)
class MinSNRWeighting(_OnPosteriorMean):
    """Weight min(snr, gamma) on the error of x0. Hang et al. 2023, arXiv:2303.09556.

    Args:
        gamma: Positive: the largest weight.

    Raises:
        ValueError: gamma is not positive.
    """

    unlimited_options: ClassVar = ("gamma",)

    gamma: float = 5.0

    def __post_init__(self) -> None:
        positive("min-snr weighting", gamma=self.gamma)

    def on_x0(self, k: Scales) -> Tensor:
        return _snr(k).clamp(max=self.gamma)


@WEIGHTINGS.register("p2")
@dataclass(frozen=True)
class P2Weighting(_OnPosteriorMean):
    """Weight 1 / (k + snr)^gamma on the error of the noise: less where the image is nearly clean. Choi et al. 2022.

    Source: arXiv:2204.00227.

    Args:
        k: Positive.
        gamma: At least 0; 0 is 'snr'.

    Raises:
        ValueError: k is not positive, or gamma negative.
    """

    k: float = 1.0
    gamma: float = 1.0

    def __post_init__(self) -> None:
        positive("p2 weighting", k=self.k)
        if not self.gamma >= 0:
            raise ValueError(f"p2 weighting: gamma must be at least 0, got {self.gamma}")

    def on_x0(self, k: Scales) -> Tensor:
        return _snr(k) / (self.k + _snr(k)) ** self.gamma


@WEIGHTINGS.register("sigmoid")
@dataclass(frozen=True)
class SigmoidWeighting(_OnPosteriorMean):
    """Weight of the variational bound, times sigmoid(bias - log-SNR). Kingma & Gao 2023, arXiv:2303.00848.

    Args:
        bias: The log-SNR above which the weight decreases, in nats.
    """

    bias: float = 0.0

    def on_x0(self, k: Scales) -> Tensor:
        return torch.sigmoid(self.bias - k.log_snr) * LikelihoodWeighting().on_x0(k)


@WEIGHTINGS.register("likelihood")
@dataclass(frozen=True)
class LikelihoodWeighting(_OnPosteriorMean):
    """Weight -(d snr / dt) / 2 on the error of x0: that of the variational bound. Kingma et al. 2021.

    Source: arXiv:2107.00630.
    """

    def on_x0(self, k: Scales) -> Tensor:
        return _snr(k) * (k.d_sigma / k.sigma - k.d_alpha / k.alpha)


def _snr(k: Scales) -> Tensor:
    return (k.alpha / k.sigma) ** 2
