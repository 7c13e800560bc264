"""From a denoised batch to pictures: PIL images, a labelled contact sheet, an animation."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from PIL import Image
from torch import Tensor

from dinit.data.pixels import to_uint8

OutputType = Literal["pil", "np", "pt", "latent"]
OUTPUT_TYPES: tuple[str, ...] = get_args(OutputType)


def convert(images: Tensor, output_type: OutputType) -> Any:
    """(B, C, H, W) around [-1, 1] -> a list of PIL images, an array (B, H, W, C) or a tensor in [0, 1].

    Values outside are clipped, here and nowhere earlier. ValueError for NaN or infinity.
    """
    if output_type == "pil":
        return to_pil(images)
    if not bool(torch.isfinite(images).all()):
        raise ValueError("images hold NaN or infinity; the model or the sampler that made them diverged")
    unit = ((images.float() + 1) / 2).clamp(0, 1)
    return unit if output_type == "pt" else unit.permute(0, 2, 3, 1).cpu().numpy()


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, C, H, W) around [-1, 1], C of 1 or 3 -> images of mode L or RGB. ValueError for other C, NaN or inf."""
    if images.shape[1] not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels, got {images.shape[1]}; ask for output_type='pt'")
    pixels = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(p[..., 0] if p.shape[-1] == 1 else p) for p in pixels]
