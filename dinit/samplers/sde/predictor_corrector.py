"""Predictor-corrector sampling and the reverse-diffusion step. Song et al. 2021, Section 4.2."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dinit.diffusion import Denoised, Denoiser, Process, Scales
from dinit.registry import suggest
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.ode.ddim import transition_variance
from dinit.samplers.sde.ddpm import ancestral_transition

Corrector = Literal["annealed", "langevin", "renoising", "none"]


def reverse_diffusion_transition(d: Denoised, t: Scales, s: Scales) -> tuple[Tensor, Tensor | float]:
    """Mean and standard deviation of x_s given x_t, by the reversed step of the forward chain.

    Song et al. 2021, Appendix E: the chain is x_t = (alpha_t / alpha_s) x_s + noise, for any path. At alpha = 0 x_t
    holds nothing of x_s, and the ancestral transition is taken.

    Args:
        d: The denoised batch at t.
        t: Start of the step.
        s: End of the step.

    Returns:
        The mean (B, C, H, W), and the standard deviation.
    """
    if t.floats.alpha == 0:
        return ancestral_transition(d, t, s, "fixed-small")
    variance = transition_variance(t.floats, s.floats)
    return (2 - t.floats.alpha / s.floats.alpha) * d.x_t + variance * d.score, math.sqrt(max(variance, 0.0))


def langevin_step_size(d: Denoised, z: Tensor, t: Scales, snr: float, corrector: Corrector) -> Tensor | float:
    """Step size of one Langevin move x + step score + sqrt(2 step) z. Song et al. 2021, Algorithms 4 and 5.

    Args:
        d: The denoised batch at t.
        z: The noise of the move, (B, C, H, W).
        t: Time of the move, sigma > 0.
        snr: Size of a move against the noise.
        corrector: 'annealed': 2 (snr sigma)², the same for all samples. 'langevin': 2 (snr |z| / |score|)² with
            the norms of each sample, where the published code averages over the batch.

    Returns:
        A number, or (B, 1, 1, 1) for 'langevin'.
    """
    if corrector == "annealed":
        move = snr * t.floats.sigma
        return 2 * (move * move)
    sizes = z.flatten(1).norm(dim=1) / d.score.flatten(1).norm(dim=1)
    return 2 * (snr * sizes.reshape(-1, *(1,) * (z.ndim - 1))) ** 2


def renoised(d: Denoised, z: Tensor, t: Scales, snr: float) -> Tensor:
    """x_t with a part 4 snr² of its noise's variance drawn again: to first order, the annealed Langevin move.

    Args:
        d: The denoised batch at t.
        z: The new noise, (B, C, H, W).
        t: Time of the move.
        snr: Size of a move against the noise, below 1/2.

    Returns:
        alpha x0 + sigma (sqrt(1 - 4 snr²) eps + 2 snr z), (B, C, H, W).
    """
    fresh = 4 * snr**2
    return t.floats.alpha * d.x0 + t.floats.sigma * (math.sqrt(1 - fresh) * d.eps + math.sqrt(fresh) * z)


@SAMPLERS.register("reverse-diffusion")
@dataclass(frozen=True)
class ReverseDiffusion(Sampler):
    r"""Reverse diffusion: the forward chain's step, reversed, exact on any path. Song et al. 2021, Appendix E.

    Formula: $x_s = (2 - a)\, x_t + b^2\,\nabla\log p_t(x_t) + b z,\quad a = \alpha_t / \alpha_s,\ b^2 = \sigma_t^2
        - a^2\sigma_s^2$

    On VE it is DDPM('fixed-large'). Source: arXiv:2011.13456.
    """

    def claims(self) -> Claims:
        return Claims(draws_per_step=1)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        mean, std = reverse_diffusion_transition(denoise(x_t, t), t, s)
        return mean + std * noise(0, x_t), None


@SAMPLERS.register("predictor-corrector", aliases=("pc",))
@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    r"""Predictor-corrector: any sampler's step, then Langevin moves at the new time. Song et al. 2021, Algorithm 1.

    Formula: $x_s = \text{predictor}(x_t),\quad \text{then } x_s \leftarrow x_s + \delta\,\nabla\log p_s(x_s) +
        \sqrt{2\delta}\, z,\quad \delta = 2\,(\text{snr}\;\sigma_s)^2$

    Every corrector runs on every process. Source: arXiv:2011.13456.

    Args:
        predictor: A registered sampler, by name or as an object, or 'none'. The paper's are 'reverse-diffusion',
            'ancestral' and 'euler-maruyama'; with few steps the second is the best.
        corrector: 'annealed' (the formula) has a step that depends on the time alone, and so leaves the
            distribution as it is (up to snr²). 'langevin' fits it to each sample's score, delta = 2 (snr |z| /
            |score|)², which suits images of many pixels and is biased where there are few. 'renoising' draws a
            part 4 snr² of the noise's variance again, which is 'annealed' to first order in snr² and stable for
            larger (azula's, whose delta is 4 snr²). 'none': no correction.
        snr: Size of a correction against the noise, positive, below 1/2 for 'renoising'.
        corrector_steps: Moves a step, at least 1.

    Raises:
        ValueError: An option out of its range, or neither predictor nor corrector; from a run, a Langevin
            corrector at sigma = 0.
    """

    predictor: str | Sampler = "ancestral"
    corrector: Corrector = "annealed"
    snr: float = 0.16
    corrector_steps: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.predictor, Mapping):  # a record of the object, which is equal to the object
            object.__setattr__(self, "predictor", SAMPLERS.create(self.predictor))
        if isinstance(self.predictor, str) and self.predictor != "none" and self.predictor not in SAMPLERS:
            raise ValueError(f"unknown predictor {self.predictor!r}{suggest(self.predictor, [*SAMPLERS, 'none'])}")
        if self.corrector not in get_args(Corrector):
            raise ValueError(
                f"unknown corrector {self.corrector!r}{suggest(str(self.corrector), list(get_args(Corrector)))}"
            )
        if self.predictor == "none" and self.corrector == "none":
            raise ValueError("predictor and corrector are both 'none': there is nothing to run")
        if not self.snr > 0:
            raise ValueError(f"snr must be positive, got {self.snr}")
        if self.corrector == "renoising" and not self.snr < 0.5:
            raise ValueError(f"a re-noising corrector needs snr below 1/2, where all noise is new, got {self.snr}")
        if isinstance(self.corrector_steps, bool) or self.corrector_steps < 1:
            raise ValueError(
                f"corrector_steps must be at least 1, got {self.corrector_steps}; use corrector='none' for none"
            )

    def claims(self) -> Claims:
        first = self._first.claims() if self._first else Claims(nfe_per_step=0)
        return Claims(
            1 if self._moves else first.order,
            nfe_per_step=first.nfe_per_step + self._moves,
            draws_per_step=first.draws_per_step + self._moves,
            cost_depends_on=first.cost_depends_on,
        )

    @cached_property
    def _first(self) -> Sampler | None:
        """The predictor; None for 'none'."""
        return None if self.predictor == "none" else SAMPLERS.create(self.predictor)

    @property
    def _moves(self) -> int:
        return self.corrector_steps if self.corrector != "none" else 0

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        if self._moves and self.corrector != "renoising" and len(points) > 1 and points[-1].floats.sigma == 0:
            raise ValueError(
                "a Langevin corrector has no step at sigma = 0, where this run ends: leave the last time out, "
                "end with 'posterior-mean', or use corrector='none'"
            )
        if self._first:
            self._first.check(denoiser, points)

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        if self._first is None:
            return torch.empty(len(t.time), 0, dtype=torch.float64)
        return self._first.inner_times(denoiser, t, s, total)

    def grid_for(self, process: Process) -> TimeGrid:
        return self._first.grid_for(process) if self._first else super().grid_for(process)

    def init(self, denoiser: Denoiser, points: list[Scales], total: int) -> Any:
        return self._first.init(denoiser, points, total) if self._first else None

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        x, drawn = x_t, 0
        if self._first:
            x, state = self._first.step(denoise, x_t, t, s, state, noise)
            drawn = self._first.claims().draws_per_step
        for j in range(self._moves):
            d, z = denoise(x, s), noise(drawn + j, x_t)
            if self.corrector == "renoising":
                x = renoised(d, z, s, self.snr)
                continue
            size = langevin_step_size(d, z, s, self.snr, self.corrector)
            root = (2 * size).sqrt() if isinstance(size, Tensor) else math.sqrt(2 * size)
            x = x + size * d.score + root * z
        return x, state
