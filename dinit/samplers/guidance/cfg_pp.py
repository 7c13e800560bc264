"""CFG++: guidance of the posterior mean, with the unconditional noise. Chung et al. 2024."""

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
    """CFG++: CFG on the posterior mean, renoised with the unconditional eps. Chung et al. 2024.

    x_s = alpha_s x0 + sigma_s eps, with x0 guided and eps that of the null class. x0 and eps then do not make up
    x_t, so this needs a sampler that takes both from the denoiser, as 'ddim' does at any eta; others are refused.
    Each step moves the state off its own path by alpha_t scale (conditional - unconditional), so the strength of
    the guidance grows with the number of steps. Source: arXiv:2406.08070.

    Args:
        scale: The paper's lambda, at least 0 and usually at most 1; 0 is the unconditional model.
        low: Lowest log-SNR that is guided; below it the prediction is the conditional one. An interval that no
            step falls in is neutral.
        high: Highest log-SNR that is guided, above low; above it the prediction is the conditional one.

    Raises:
        ValueError: An option out of its range; from `wrap`, a denoiser without a null class.
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
