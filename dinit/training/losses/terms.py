"""Loss terms added to the squared error, computed from the network's output and its target, each with a weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dinit.diffusion.process import positive
from dinit.registry import Registry

LOSS_TERMS: Registry[type[LossTerm]] = Registry("loss term", "dinit.training.losses")


class LossTerm(ABC):
    """A term added to each sample's squared error, before its weighting. Subclasses are frozen dataclasses."""

    @abstractmethod
    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """The term of each sample, with its weight.

        Args:
            output: The network's prediction, (B, C, H, W) float32.
            target: What it is trained to give, (B, C, H, W) float32.

        Returns:
            (B,) float32.
        """


@LOSS_TERMS.register("direction")
@dataclass(frozen=True)
class Direction(LossTerm):
    """Direction: weight (1 - cos) of the angle of output and target over an image. Yao et al. 2024 (FasterDiT).

    Published for velocity networks.

    Args:
        weight: Positive.

    Raises:
        ValueError: weight is not positive.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        positive("direction term", weight=self.weight)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return self.weight * (1 - F.cosine_similarity(output.flatten(1), target.flatten(1), dim=1))


@LOSS_TERMS.register("contrastive")
@dataclass(frozen=True)
class Contrastive(LossTerm):
    """Contrastive flow matching: -weight times the squared error to another image's target. Stoica et al. 2025.

    The rows of a batch form pairs, and each row's other image is the second of its pair. Parts of even size
    therefore give the same loss as the whole batch. A last row without a second has no term. Source:
    arXiv:2506.05350.

    Args:
        weight: In (0, 1); from 1 upwards the loss has no minimum.

    Raises:
        ValueError: weight is outside (0, 1).
    """

    weight: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.weight < 1:
            raise ValueError(f"contrastive term: weight must be between 0 and 1, got {self.weight}")

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        paired = len(target) // 2 * 2
        other = torch.arange(paired, device=target.device) ^ 1
        away = (output[:paired] - target[other]).square().flatten(1).mean(1)
        return F.pad(-self.weight * away, (0, len(target) - paired))
