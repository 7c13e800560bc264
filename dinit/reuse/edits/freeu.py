"""FreeU: stronger features from below, skips with less of their lowest frequencies. Si et al. 2024."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.reuse.edits.base import EDITS, FeatureForm, SkipEdit


@EDITS.register("freeu")
@dataclass(frozen=True)
class FreeU(SkipEdit):
    """At the two lowest resolutions with skips, half of the channels from below are scaled up, and of each skip the
    lowest frequencies (2 x 2 of the discrete Fourier transform) down.

    Si et al. 2024 (CVPR), arXiv:2309.11497, equations 3 to 6 with one factor for all of a map, as diffusers'
    `enable_freeu` has them. Published for Stable Diffusion 1.4: b1 = 1.3, b2 = 1.4, s1 = 0.9, s2 = 0.2.

    Args:
        b1: above 0, of the features at the lowest resolution. 1 leaves them as they are, with all four 1 (neutral).
        b2: above 0, of those at the next.
        s1: at least 0, of the skips at the lowest resolution.
        s2: at least 0, of those at the next.

    Raises:
        ValueError: a factor out of its range; from `wrap`, a network without skip connections.
    """

    b1: float = 1.1
    b2: float = 1.2
    s1: float = 0.9
    s2: float = 0.8

    def __post_init__(self) -> None:
        for name, value in (("b1", self.b1), ("b2", self.b2)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} must be above 0 (1 is no change), got {value}")
        for name, value in (("s1", self.s1), ("s2", self.s2)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} must be at least 0 (1 is no change), got {value}")

    @property
    def neutral(self) -> bool:
        return (self.b1, self.b2, self.s1, self.s2) == (1, 1, 1, 1)

    def changed(self, x: Tensor, skip: Tensor, level: int, levels: int, form: FeatureForm) -> tuple[Tensor, Tensor]:
        if level > 1:
            return x, skip
        b, s = ((self.b1, self.s1), (self.b2, self.s2))[level]
        if b != 1:
            dim = 1 if x.ndim == 4 else 2
            half = x.shape[dim] // 2
            low, high = x.split([half, x.shape[dim] - half], dim)
            x = torch.cat([b * low, high], dim)
        return x, skip if s == 1 else form.on_maps(skip, lambda maps: scale_low_frequencies(maps, s))


def scale_low_frequencies(maps: Tensor, scale: float) -> Tensor:
    """Maps with the frequencies 0 and -1 of height and of width scaled; of the inverse transform, the real part.

    Args:
        maps: (B, C, H, W).
        scale: at least 0.
    """
    frequencies = torch.fft.fft2(maps.to(torch.promote_types(maps.dtype, torch.float32)))
    mask = torch.ones(frequencies.shape[-2:], dtype=frequencies.real.dtype, device=maps.device)
    mask[:1, :1], mask[:1, -1:], mask[-1:, :1], mask[-1:, -1:] = scale, scale, scale, scale
    return torch.fft.ifft2(frequencies * mask).real.to(maps.dtype)
