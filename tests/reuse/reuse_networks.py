"""Tiny networks with random values everywhere, and runs of them, which tests of caches and edits share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dinit.diffusion import BackboneDenoiser, LinearFlow
from dinit.diffusion.parameterization import PARAMETERIZATIONS
from dinit.models.base import BACKBONES, Backbone
from dinit.samplers import SAMPLERS


def network(name: str, **options: Any) -> Backbone:
    """The tiny preset; its zero-initialised parts would hide faults."""
    torch.manual_seed(0)
    made = BACKBONES[name].preset("tiny", **options).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return made


def denoiser_of(backbone: Backbone) -> BackboneDenoiser:
    return BackboneDenoiser(backbone, LinearFlow(), PARAMETERIZATIONS.create("velocity"))


def noise(backbone: Backbone, batch: int = 3) -> Tensor:
    shape = (batch, backbone.in_channels, backbone.image_size, backbone.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def sampled(denoiser: Any, x: Tensor, steps: int = 6, sampler: str = "euler") -> Tensor:
    with torch.no_grad():
        return SAMPLERS.create(sampler).sample(denoiser, x, steps, seed=0)
