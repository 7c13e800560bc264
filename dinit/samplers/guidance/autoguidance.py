"""Autoguidance: guidance by a weaker version of the model itself. Karras et al. 2024."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.samplers.guidance.base import (
    GUIDANCES,
    Guidance,
    Guided,
    apply_interval,
    check_interval,
    check_scale,
    labels_of,
)
from dinit.samplers.guidance.cfg import extrapolate_prediction


def check_companion(denoiser: Denoiser, other: Denoiser, who: str) -> None:
    """Check that two models predict the same: process, classes, null class.

    Args:
        denoiser: The guided model.
        other: The model that guides it.
        who: Begins the message.

    Raises:
        ValueError: They do not.
    """
    if other.process != denoiser.process:
        raise ValueError(
            f"{who} needs two models of one noise process; the model has {denoiser.process}, the other "
            f"{other.process}"
        )
    if other.num_classes != denoiser.num_classes or (denoiser.null_class and not other.null_class):
        raise ValueError(
            f"{who} needs two models of the same classes; the model has {_classes(denoiser)}, the other "
            f"{_classes(other)}"
        )


def _classes(denoiser: Denoiser) -> str:
    return f"{denoiser.num_classes} {'and a' if denoiser.null_class else 'without'} null class"


@GUIDANCES.register("autoguidance")
@dataclass(frozen=True)
class Autoguidance(Guidance):
    """Autoguidance: away from a weaker model with the same labels. Karras et al. 2024.

    x0 = weak + scale (model - weak), which raises quality without loss of variety. Source: arXiv:2406.02507.

    Args:
        scale: At least 0. 1 is the model alone (neutral), 0 the weak one; the paper's figures have 1.5 to 3.
        weak: The denoiser of a smaller or less trained model on the same process, with the same classes.
        low: Lowest log-SNR that is guided; below it the model's own prediction is returned.
        high: Highest log-SNR that is guided, above low; above it the model's own prediction is returned.

    Raises:
        ValueError: An option out of its range; from `wrap`, a scale without a weak model, or one that does not
            fit.
    """

    scale: float = 2.0
    weak: Denoiser | None = None
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        check_scale(self.scale, "autoguidance", "1 is the model alone, 0 the weak one")
        check_interval(self.low, self.high)
        if self.weak is not None and not isinstance(self.weak, Denoiser):
            raise ValueError(f"weak must be a Denoiser, such as weak_pipeline.denoiser(); got {self.weak!r}")

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.scale == 1:
            return denoiser
        weak = self.weak
        if weak is None:
            raise ValueError(
                "autoguidance needs a weaker model, which Python alone can give: Autoguidance(scale, "
                "weak=weak_pipeline.denoiser())"
            )
        check_companion(denoiser, weak, "autoguidance")

        def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            given = denoiser(x_t, t, cond)
            if t.time.ndim == 0 and not self.low <= t.floats.log_snr <= self.high:
                return given
            labels = labels_of(cond, weak.num_classes, "autoguidance")
            weak_prediction = weak(x_t, t, weak.encode(labels).in_run(cond.run))
            prediction = extrapolate_prediction(given, weak_prediction, self.scale)
            return apply_interval(prediction, given, self.low, self.high)

        return Guided(denoiser, guided)
