"""CFG-Zero*: an optimised scale of the unconditional velocity, and first steps of velocity 0. Fan et al. 2025."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.diffusion.parameterization import Velocity
from dinit.samplers.guidance.base import (
    GUIDANCES,
    Guidance,
    Guided,
    check_null_class,
    check_scale,
    non_batch_dims,
    two_condition_guidance,
)


def optimal_scale(given: Tensor, free: Tensor) -> Tensor:
    """s with least |given - s free|: <given, free> / |free|^2 of each sample, (B, 1, 1, 1)."""
    axes = non_batch_dims(free)
    square = (free * free).sum(axes, keepdim=True).clamp_min(torch.finfo(free.dtype).tiny)
    return (given * free).sum(axes, keepdim=True) / square


@GUIDANCES.register("cfg-zero*", aliases=("cfg-zero-star",))
@dataclass(frozen=True)
class CFGZeroStar(Guidance):
    """CFG-Zero*: CFG with a fitted unconditional velocity, and first steps of velocity 0. Fan et al. 2025.

    v = s v_free + scale (v_given - s v_free), s = <v_given, v_free> / |v_free|^2 of each sample. On the straight
    path the velocity is flow matching's; elsewhere it is that path's own. Source: arXiv:2503.18886.

    Args:
        scale: At least 0; 1 with zero_steps = 0 is neutral.
        zero_steps: Number of first steps with velocity 0 (the paper's zero-init, 1 or 4 % of the steps), for flow
            models whose first velocity is worse than none. At least 0; the last step of a run is never one of
            them.

    Raises:
        ValueError: An option out of its range; from `wrap`, a denoiser without a null class.
    """

    scale: float = 1.5
    zero_steps: int = 0

    def __post_init__(self) -> None:
        check_scale(self.scale, "guidance")
        if self.zero_steps < 0:
            raise ValueError(f"zero_steps must be 0 or more, got {self.zero_steps}")

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.scale == 1:
            return denoiser if self.zero_steps == 0 else self._still_at_first(denoiser, denoiser)
        check_null_class(denoiser, "cfg-zero*", "no guidance, or scale = 1")

        def combine(given: Denoised, free: Denoised, cond: Condition) -> Denoised:
            fitted = optimal_scale(given.velocity, free.velocity) * free.velocity
            return with_velocity(given, fitted + self.scale * (given.velocity - fitted))

        guided = two_condition_guidance(denoiser, lambda cond: cond.null(), combine)
        return self._still_at_first(guided, denoiser) if self.zero_steps else guided

    def _still_at_first(self, guided: Denoiser, denoiser: Denoiser) -> Denoiser:
        def function(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            run = cond.run
            last = run.steps is not None and run.step >= run.steps - 1
            if run.step >= self.zero_steps or last:
                return guided(x_t, t, cond)
            given = denoiser(x_t, t, cond)  # for its shape, dtype and other fields
            return with_velocity(given, torch.zeros_like(x_t))

        return Guided(guided, function)


def with_velocity(denoised: Denoised, velocity: Tensor) -> Denoised:
    """The same batch with the posterior mean that implies this velocity."""
    k = denoised.scales
    x0 = Velocity().posterior_mean(velocity, denoised.x_t, k)
    if denoised.clean_eps is None:
        return replace(denoised, x0=x0)
    return replace(denoised, x0=x0, clean_eps=(velocity - k.d_alpha * x0) / k.d_sigma)
