"""Pixel ranges: conversion between bytes (0 .. 255) and the network's range ([-1, 1])."""

from __future__ import annotations

import torch
from torch import Tensor


def from_uint8(images: Tensor) -> Tensor:
    """Pixels from bytes to the network's range.

    Args:
        images: uint8 in 0 .. 255, any shape.

    Returns:
        float32 in [-1, 1], the same shape.

    Raises:
        ValueError: another dtype.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"pixels must be uint8 in 0 .. 255, got {images.dtype}")
    return images.to(torch.float32) / 127.5 - 1.0


def to_uint8(images: Tensor) -> Tensor:
    """Pixels from the network's range to the nearest bytes; undoes `from_uint8` exactly.

    Args:
        images: float in [-1, 1], any shape; values outside are clipped.

    Returns:
        uint8 in 0 .. 255, the same shape.

    Raises:
        ValueError: integer images, NaN or infinity.
    """
    if not images.is_floating_point():
        raise ValueError(f"images must be float in [-1, 1], got {images.dtype}")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images hold NaN or infinity; the model or the sampler that made them diverged")
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
