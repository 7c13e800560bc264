"""Every registered backbone × process × parameterization × sampler × guidance: an image, or a reason why not."""

from __future__ import annotations

import warnings
from itertools import product

import pytest
import torch

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, BackboneDenoiser
from dinit.models.base import BACKBONES, Backbone
from dinit.samplers import SAMPLERS
from dinit.samplers.guidance import GUIDANCES, apply_guidance

LABELS = torch.tensor([3, 10])  # a class and the null class of the tiny presets
GUIDES = [[], *[[name] for name in GUIDANCES], list(GUIDANCES), list(GUIDANCES)[::-1]]


def tiny(name: str) -> Backbone:
    """The family's smallest preset with random weights everywhere: zeroed layers would hide their inputs."""
    backbone = BACKBONES[name].preset("tiny").eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return backbone


def test_every_backbone_can_be_made_tiny() -> None:
    for name in BACKBONES:
        assert tiny(name).num_classes == 10
        assert sum(p.numel() for p in tiny(name).parameters()) < 500_000


@pytest.mark.parametrize(("backbone_name", "process_name"), product(BACKBONES.names(), PROCESSES.names()))
@torch.no_grad()
def test_finite_image_or_refusal(backbone_name: str, process_name: str) -> None:
    backbone, process = tiny(backbone_name), PROCESSES.create(process_name)
    size = backbone.image_size
    noise = torch.randn(2, backbone.in_channels, size, size, generator=torch.Generator().manual_seed(1))
    made = 0
    for pair_name in PARAMETERIZATIONS:
        try:
            denoiser = BackboneDenoiser(backbone, process, PARAMETERIZATIONS.create(pair_name))
        except ValueError as refusal:
            assert "singular" in str(refusal)
            assert "Use " in str(refusal)
            # Stopping short of pure noise, as the refusal suggests, must work.
            denoiser = BackboneDenoiser(backbone, process, PARAMETERIZATIONS.create(pair_name), t_max=0.999)
        for sampler_name, guides in product(SAMPLERS, GUIDES):
            made += _one_image(denoiser, sampler_name, guides, noise)
    assert made > 0


def _one_image(denoiser: BackboneDenoiser, sampler_name: str, guides: list[str], noise: torch.Tensor) -> bool:
    """Whether an image was made; a refusal must explain itself before the first network call."""
    calls = 0
    forward = denoiser.backbone.forward

    def counting(*args):
        nonlocal calls
        calls += 1
        return forward(*args)

    denoiser.backbone.forward = counting
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = SAMPLERS.create(sampler_name).sample(apply_guidance(denoiser, guides), noise, 3, labels=LABELS)
    except ValueError as refusal:
        assert calls == 0, f"refused after {calls} network calls"
        assert len(str(refusal)) > 30
        return False
    finally:
        denoiser.backbone.forward = forward
    assert image.shape == noise.shape
    assert bool(image.isfinite().all()), f"{sampler_name} with {guides} is not finite"
    return True
