"""Between bytes (0 .. 255) and the network's range ([-1, 1])."""

from __future__ import annotations

import torch
from torch import Tensor


def from_uint8(images: Tensor) -> Tensor:
    """uint8 in 0 .. 255, any shape -> float32 in [-1, 1]. ValueError for another dtype."""
    if images.dtype != torch.uint8:
        raise ValueError(f"pixels must be uint8 in 0 .. 255, got {images.dtype}")
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1], any shape -> the nearest of 0 .. 255, uint8. Values outside are clipped.

    Undoes `from_uint8` exactly. ValueError for integer images and for NaN or infinity, which no byte can say.
    """
    if not images.is_floating_point():
        raise ValueError(f"images must be float in [-1, 1], got {images.dtype}")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images hold NaN or infinity; the model or the sampler that made them diverged")
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
