"""CFG++: guidance of the clean image alone. Chung et al. 2024."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from dinit.diffusion import Condition, Denoised, Denoiser
from dinit.samplers.guidance.base import (
    GUIDANCES,
    Guidance,
    check_interval,
    check_null_class,
    check_scale,
    two_condition_guidance,
)
from dinit.samplers.guidance.cfg import extrapolate


@GUIDANCES.register("cfg++")
@dataclass(frozen=True)
class CFGpp(Guidance):
    """CFG on the posterior mean, and the unconditional eps to renoise it with. Chung et al. 2024.

    x_s = alpha_s x0 + sigma_s eps, with x0 guided and eps that of the null class: x0 and eps no longer make up x_t,
    so this needs a sampler that takes both from the denoiser, as 'ddim' does at any eta; others refuse. Each step
    moves the state off its own path by alpha_t scale (conditional - unconditional), so the strength of the guidance
    grows with the number of steps.
    scale: their lambda, usually in [0, 1]; 0 is the unconditional model. low, high: guide where
    low <= log-SNR <= high only, and ask for the conditional model elsewhere; an interval that no step falls in is
    neutral. ValueError for a negative scale, an empty interval, or a denoiser without a null class.
    """

    scale: float = 0.6
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        check_scale(self.scale, "cfg++", "0 is the unconditional model")
        check_interval(self.low, self.high)

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        check_null_class(denoiser, "cfg++", "no guidance")

        def combine(given: Denoised, free: Denoised, cond: Condition) -> Denoised:
            return replace(given, x0=extrapolate(given.x0, free.x0, self.scale), renoise_eps=free.eps)

        required_outputs = frozenset({"renoise_eps"})
        return two_condition_guidance(
            denoiser, lambda cond: cond.null(), combine, self.low, self.high, required_outputs
        )
