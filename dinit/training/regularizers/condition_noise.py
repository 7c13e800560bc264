"""Condition-embedding perturbation (CEP): noise on the label's embedding, in training only.

Chen et al. 2024, "Slight Corruption in Pre-training Data Makes Better Diffusion Models", arXiv:2405.20494.
Conditions that are slightly wrong in training give samples of more variety and quality, and noise on their
embeddings does so where the labels are right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from dinit.diffusion.process import positive
from dinit.training import randomness


@dataclass(frozen=True)
class ConditionNoise:
    """Noise of scale gamma / sqrt(D) on each of the D entries of a condition, whatever the class or the null class.

    gamma: positive. With 'gaussian' gamma / sqrt(D) is the standard deviation, and gamma the root mean square
    length of the noise; 'uniform' lies in [-gamma, gamma] / sqrt(D) and is sqrt(3) times as short. D is the whole
    condition's width: of a network that embeds a label for each of its resolutions, all of them together.
    ValueError for a gamma that is not positive.
    """

    gamma: float = 1.0
    kind: Literal["gaussian", "uniform"] = "gaussian"

    def __post_init__(self) -> None:
        positive("condition_noise", gamma=self.gamma)

    def draw(self, seed: int, start: int, shape: tuple[int, int]) -> Tensor:
        """The noise (B, D) of the samples start .. start + B - 1 of a run, float32 on the CPU."""
        unit = randomness.condition_noise(seed, start, shape, uniform=self.kind == "uniform")
        return unit * (self.gamma / math.sqrt(shape[1]))
