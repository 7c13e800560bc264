"""Skip-tuning: skips are scaled, the deepest most. Ma et al. 2024."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dinit.reuse.edits.base import EDITS, FeatureForm, SkipEdit


@EDITS.register("skip-tuning")
@dataclass(frozen=True)
class SkipTuning(SkipEdit):
    """Every skip is scaled by a factor that goes linearly from `bottom`, at the lowest resolution, to `top`.

    At few steps smaller skips make a network's map from noise to image smoother. Ma et al. 2024 (The Surprising
    Effectiveness of Skip-Tuning in Diffusion Sampling), arXiv:2402.15170.

    Args:
        bottom: at least 0; 1 with top = 1 is no change (neutral). The paper tunes about 0.6 to 0.9 for few steps.
        top: at least 0.

    Raises:
        ValueError: a factor below 0; from `wrap`, a network without skip connections.
    """

    bottom: float = 0.8
    top: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("bottom", self.bottom), ("top", self.top)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0 (1 is no change), got {value}")

    @property
    def neutral(self) -> bool:
        return self.bottom == self.top == 1

    def changed(self, x: Tensor, skip: Tensor, level: int, levels: int, form: FeatureForm) -> tuple[Tensor, Tensor]:
        share = level / (levels - 1) if levels > 1 else 0.0
        factor = self.bottom + (self.top - self.bottom) * share
        return x, skip if factor == 1 else factor * skip
