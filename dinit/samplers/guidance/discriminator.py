"""Discriminator guidance. Kim et al. 2023 (Refining generative process with discriminator guidance)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from dinit.diffusion import Condition, Denoiser, Scales
from dinit.samplers.guidance.base import GUIDANCES, Guidance, check_interval, check_scale, labels_of
from dinit.samplers.guidance.gradient import gradient_guidance


@GUIDANCES.register("discriminator")
@dataclass(frozen=True)
class Discriminator(Guidance):
    """Discriminator guidance: the gradient of log d / (1 - d), real to generated, on the score. Kim et al. 2023.

    Source: arXiv:2211.17091.

    Args:
        scale: At least 0. 0 is neutral; at 1 a perfect discriminator corrects the model's score to that of the
            data.
        discriminator: (x_t, scales at t, labels (B,)) to the logit log d / (1 - d) of each sample, (B,); rows of
            the null class have the label num_classes. `dinit.training.discriminator` trains one.
        low: Lowest log-SNR that is guided; below it the prediction is the model's.
        high: Highest log-SNR that is guided, above low; above it the prediction is the model's.

    Raises:
        ValueError: An option out of its range; from `wrap`, a scale without a discriminator.
    """

    scale: float = 1.0
    discriminator: Callable[[Tensor, Scales, Tensor], Tensor] | None = None
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        check_scale(self.scale, "discriminator guidance", "0 is the model alone")
        check_interval(self.low, self.high)
        if self.discriminator is not None and not callable(self.discriminator):
            raise ValueError(
                f"discriminator must take (x_t, scales, labels) and give logits, got {self.discriminator!r}"
            )

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.scale == 0:
            return denoiser
        discriminator = self.discriminator
        if discriminator is None:
            raise ValueError(
                "discriminator guidance needs a discriminator of real and generated images at every noise level: "
                "train one with dinit.training.discriminator, and give it from Python: Discriminator(scale, "
                "discriminator=network)"
            )

        def logit(x_t: Tensor, t: Scales, cond: Condition) -> Tensor:
            return discriminator(x_t, t, labels_of(cond, denoiser.num_classes, "discriminator guidance"))

        return gradient_guidance(denoiser, logit, self.scale, self.low, self.high)
