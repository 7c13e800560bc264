"""Negative guidance: another class in place of the null class."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dinit.diffusion import Condition, Denoised, Denoiser
from dinit.samplers.guidance.base import (
    GUIDANCES,
    Guidance,
    check_class,
    check_interval,
    check_scale,
    other_class,
    two_condition_guidance,
    where_rows,
)
from dinit.samplers.guidance.cfg import extrapolate_prediction


@GUIDANCES.register("negative")
@dataclass(frozen=True)
class Negative(Guidance):
    """Negative guidance, away from another class: CFG with that class in place of the null class.

    x0 = negative + scale (conditional - negative). Rows of the null class are left as they are, so that it may
    stand inside CFG. It needs no null class.

    Args:
        scale: At least 0; 1 is neutral, 0 the negative class itself.
        label: The negative class.
        low: Lowest log-SNR that is guided; below it the prediction is the conditional one.
        high: Highest log-SNR that is guided, above low; above it the prediction is the conditional one.

    Raises:
        ValueError: An option out of its range; from `wrap`, a class that the model does not have.
    """

    scale: float = 1.5
    label: int = 0
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        check_scale(self.scale, "guidance", "1 is the conditional model, 0 the negative class")
        check_interval(self.low, self.high)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        check_class(denoiser, self.label, "negative guidance")
        if self.scale == 1:
            return denoiser

        def combine(given: Denoised, bad: Denoised, cond: Condition) -> Denoised:
            guided = extrapolate_prediction(given, bad, self.scale)
            return where_rows(~cond.is_null, guided, given)

        return two_condition_guidance(
            denoiser, lambda cond: other_class(denoiser, cond, self.label), combine, self.low, self.high
        )
