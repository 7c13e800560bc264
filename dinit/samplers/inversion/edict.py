"""EDICT: exact inversion by two coupled states. Wallace et al. 2023; arXiv:2211.12446."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dinit.diffusion import Denoiser, Process, Scales
from dinit.samplers.base import SAMPLERS, Claims, StepDenoiser, StepNoise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.inversion.invert import Reversible, check_invertible_steps, split, wide

Coupled = tuple[Tensor, Tensor]


@SAMPLERS.register("edict")
@dataclass(frozen=True)
class EDICT(Reversible):
    r"""Exact inversion by EDICT: two states, each moved by DDIM with the other's prediction, then mixed.

    Formula: $x' = a x_t + b\,F(y_t),\ y' = a y_t + b\,F(x'),\quad x_s = p x' + (1-p) y',\ y_s = p y' + (1-p)
        x_s,\quad a x + b F \text{ DDIM's step, } F = \alpha\varepsilon - \sigma x_0 \text{ or } \varepsilon$

    A step is a chain of affine maps of one state given the other, so each is undone in closed form. Both start from
    the same x, and x is the sample. The order of x and y is the same at every step. The states are kept in float64,
    as undoing a damped mode multiplies its rounding errors. Wallace et al. 2023 (EDICT); arXiv:2211.12446.

    With 'eps', the paper's, a step multiplies x - y by alpha_s / alpha_t > 1, which mixing has to damp, by mixing²
    a step, and inversion multiplies by as much. With few steps (below 50 on flow and EDM) the first diverges, with
    many the second. With 'v' the factor is at most 1: no mixing is needed and both directions are stable.

    Args:
        mixing: The paper's p, in (0, 1]; 1 is no mixing. The paper has 0.93.
        network: The prediction of one state that is held fixed while the other is moved: 'v' or 'eps'.

    Raises:
        ValueError: mixing outside (0, 1]; another prediction.
    """

    mixing: float = 1.0
    network: Literal["v", "eps"] = "v"

    def __post_init__(self) -> None:
        if not 0 < self.mixing <= 1:
            raise ValueError(f"mixing must be in (0, 1], got {self.mixing}")
        if self.network not in ("v", "eps"):
            raise ValueError(f"network must be 'v' or 'eps' (the paper's), got {self.network!r}")

    def claims(self) -> Claims:
        return Claims(nfe_per_step=2)

    def grid_for(self, process: Process) -> TimeGrid:
        usual = super().grid_for(process)
        return Shifted() if isinstance(usual, Karras) else usual  # where EDICT errs less than on it

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        check_invertible_steps(self, points)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Coupled | None, noise: StepNoise
    ) -> tuple[Tensor, Coupled]:
        x, y = state or (wide(x_t), wide(x_t))
        move = self._down if s.floats.time < t.floats.time else self._up
        x, y = move(denoise, x, y, t, s, x_t)
        return x.to(x_t.dtype), (x, y)

    def _down(self, denoise: StepDenoiser, x: Tensor, y: Tensor, t: Scales, s: Scales, like: Tensor) -> Coupled:
        carry, push = split(denoise(y.to(like.dtype), t), t, s, self.network)
        x = carry * x + push
        carry, push = split(denoise(x.to(like.dtype), t), t, s, self.network)
        y = carry * y + push
        p = self.mixing
        x = p * x + (1 - p) * y
        return x, p * y + (1 - p) * x

    def _up(self, denoise: StepDenoiser, x: Tensor, y: Tensor, t: Scales, s: Scales, like: Tensor) -> Coupled:
        """The step from s down to t, undone line by line."""
        p = self.mixing
        y = (y - (1 - p) * x) / p
        x = (x - (1 - p) * y) / p
        carry, push = split(denoise(x.to(like.dtype), s), s, t, self.network)
        y = (y - push) / carry
        carry, push = split(denoise(y.to(like.dtype), s), s, t, self.network)
        return (x - push) / carry, y
