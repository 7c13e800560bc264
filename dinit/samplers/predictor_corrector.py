"""Predictor–corrector sampling. Song et al. 2021, Section 4.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor

from dinit.diffusion import Denoised, Scales
from dinit.registry import suggest
from dinit.samplers.base import SAMPLERS, Denoise, Sampler, StepNoise
from dinit.samplers.ddim import transition_variance
from dinit.samplers.ddpm import ancestral_transition
from dinit.samplers.sde import euler_maruyama_transition

Predictor = Literal["reverse-diffusion", "ancestral", "euler-maruyama", "none"]
Corrector = Literal["annealed", "langevin", "none"]


def reverse_diffusion_transition(d: Denoised, t: Scales, s: Scales) -> tuple[Tensor, Tensor]:
    """Mean (B, C, H, W) and standard deviation of x_s given x_t: the forward chain's step, reversed.

    Song et al. 2021, Appendix E, with the chain x_t = (alpha_t / alpha_s) x_s + noise, for any path.
    """
    variance = transition_variance(t, s)
    return (2 - t.alpha / s.alpha) * d.x_t + variance * d.score, variance.sqrt()


def langevin_step_size(d: Denoised, z: Tensor, t: Scales, snr: float, corrector: Corrector) -> Tensor:
    """The step of one Langevin move x + step score + sqrt(2 step) z at the noise of t.

    annealed: 2 (snr sigma)², the same for all. langevin: 2 (snr |z| / |score|)², (B, 1, 1, 1): Song et al.
    2021, Algorithms 4 and 5, with the norms of each sample, where the published code averages over the batch.
    """
    if corrector == "annealed":
        return 2 * (snr * t.sigma) ** 2
    sizes = z.flatten(1).norm(dim=1) / d.score.flatten(1).norm(dim=1)
    return 2 * (snr * sizes.reshape(-1, *(1,) * (z.ndim - 1))) ** 2


@SAMPLERS.register("predictor-corrector")
@dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """A step of the reverse SDE, then Langevin moves at the new time. Song et al. 2021, Algorithm 1.

    predictor: 'reverse-diffusion', 'ancestral' (DDPM), 'euler-maruyama' or 'none'. corrector: 'annealed' has a
    step that depends on the time alone, and so leaves the distribution as it is (up to snr²); 'langevin' fits
    it to each sample's score, which suits images of many pixels and is biased where there are few; or 'none'.
    snr: size of a correction against the noise, positive. corrector_steps: Langevin moves a step, at least 1.
    ValueError for other settings, or with neither predictor nor corrector.
    """

    predictor: Predictor = "reverse-diffusion"
    corrector: Corrector = "annealed"
    snr: float = 0.16
    corrector_steps: int = 1

    def __post_init__(self) -> None:
        for kind, name, known in (
            ("predictor", self.predictor, list(get_args(Predictor))),
            ("corrector", self.corrector, list(get_args(Corrector))),
        ):
            if name not in known:
                raise ValueError(f"unknown {kind} {name!r}{suggest(str(name), known)}")
        if self.predictor == "none" and self.corrector == "none":
            raise ValueError("predictor and corrector are both 'none': there is nothing to run")
        if not self.snr > 0:
            raise ValueError(f"snr must be positive, got {self.snr}")
        if isinstance(self.corrector_steps, bool) or self.corrector_steps < 1:
            raise ValueError(
                f"corrector_steps must be at least 1, got {self.corrector_steps}; use corrector='none' for none"
            )

    @property
    def draws_per_step(self) -> int:  # type: ignore[override]
        return 1 + self._moves

    @property
    def nfe_per_step(self) -> int:  # type: ignore[override]
        return (self.predictor != "none") + self._moves

    @property
    def _moves(self) -> int:
        return self.corrector_steps if self.corrector != "none" else 0

    def check(self, denoiser: Any, grid: list[Scales]) -> None:
        if self._moves and len(grid) > 1 and grid[-1].numbers.sigma == 0:
            raise ValueError(
                "a Langevin corrector has no step at sigma = 0, where this run ends: leave the last time out, "
                "end with 'posterior-mean', or use corrector='none'"
            )

    def step(
        self, denoise: Denoise, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        x = x_t
        if self.predictor != "none":
            mean, std = self._predict(denoise(x_t, t), t, s)
            x = mean + std * noise(0, x_t)
        for j in range(self._moves):
            d, z = denoise(x, s), noise(1 + j, x_t)
            size = langevin_step_size(d, z, s, self.snr, self.corrector)
            x = x + size * d.score + (2 * size).sqrt() * z
        return x, None

    def _predict(self, d: Denoised, t: Scales, s: Scales) -> tuple[Tensor, Tensor]:
        if self.predictor == "reverse-diffusion":
            return reverse_diffusion_transition(d, t, s)
        if self.predictor == "ancestral":
            return ancestral_transition(d, t, s, "fixed-small")
        return euler_maruyama_transition(d, t, s)
