"""Every registered backbone × process × parameterization × sampler × guidance: an image, or a reason why not.

The product of all five is near a million runs. Every backbone × process is walked here with every sampler, every
parameterization and every guidance, which take turns, from another start for each test, so that over the tests
every two entries of any two registries meet, and for each process nearly every sampler meets every guidance.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from itertools import product

import pytest
import torch

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, BackboneDenoiser
from dinit.models.analytic import GaussianDenoiser
from dinit.models.base import BACKBONES, Backbone
from dinit.samplers import SAMPLERS
from dinit.samplers.guidance import GUIDANCES, apply_guidance

LABELS = torch.tensor([3, 10])  # a class and the null class of the tiny presets


def nests(name: str) -> bool:
    """Whether the guidance needs no second model, nor a sampler that hears more than x0.

    tests/samplers/test_guidance_methods.py nests all of them.
    """
    try:
        return not apply_guidance(GaussianDenoiser(PROCESSES.create("vp"), 0.0, 1.0, (1, 1, 1)), name).demands
    except ValueError:
        return False


NESTED = [name for name in GUIDANCES if nests(name)]
GUIDES = [[], *[[name] for name in GUIDANCES], NESTED, NESTED[::-1]]
PAIRS = [(backbone, process) for process in PROCESSES for backbone in BACKBONES]  # one process's stand together


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


def turns(start: int) -> Iterator[tuple[str, str, list[str]]]:
    """Every sampler, parameterization and list of guidances at least once; `start` shifts who meets whom."""
    samplers, pairs = SAMPLERS.names(), PARAMETERIZATIONS.names()
    for i in range(max(len(samplers), len(pairs), len(GUIDES))):
        yield samplers[i % len(samplers)], pairs[(i + start) % len(pairs)], GUIDES[(i + start) % len(GUIDES)]


def test_over_all_tests_every_two_entries_meet() -> None:
    met = {turn[:2] for start in range(len(PAIRS)) for turn in turns(start)}
    assert met == set(product(SAMPLERS, PARAMETERIZATIONS))
    met = {(sampler, *guides) for start in range(len(PAIRS)) for sampler, _, guides in turns(start)}
    assert met == {(sampler, *guides) for sampler, guides in product(SAMPLERS, GUIDES)}


@pytest.mark.parametrize(("backbone_name", "process_name"), PAIRS)
@torch.no_grad()
def test_finite_image_or_refusal(backbone_name: str, process_name: str) -> None:
    backbone = tiny(backbone_name)
    noise = noise_for(backbone)
    denoisers = {name: read(backbone, process_name, name) for name in PARAMETERIZATIONS}
    made = 0
    for sampler_name, pair_name, guides in turns(PAIRS.index((backbone_name, process_name))):
        made += _one_image(denoisers[pair_name], sampler_name, guides, noise)
    assert made > 0


def noise_for(backbone: Backbone) -> torch.Tensor:
    size = backbone.image_size
    return torch.randn(2, backbone.in_channels, size, size, generator=torch.Generator().manual_seed(1))


def read(backbone: Backbone, process_name: str, pair_name: str) -> BackboneDenoiser:
    """The denoiser; where the pair is singular at pure noise, short of it, as the refusal suggests."""
    process, pair = PROCESSES.create(process_name), PARAMETERIZATIONS.create(pair_name)
    try:
        return BackboneDenoiser(backbone, process, pair)
    except ValueError as refusal:
        assert "singular" in str(refusal)
        assert "Use " in str(refusal)
        return BackboneDenoiser(backbone, process, pair, t_max=0.999)


def _one_image(denoiser: BackboneDenoiser, sampler_name: str, guides: list[str], noise: torch.Tensor) -> bool:
    """Whether an image was made; a refusal must explain itself before the first network call."""
    calls = 0
    forward = denoiser.backbone.forward

    def counting(*args):
        nonlocal calls
        calls += 1
        return forward(*args)

    denoiser.backbone.forward = counting
    # Random networks are rough: to an adaptive solver's usual tolerances they take hundreds of evaluations.
    loose = {"rtol": 0.1, "atol": 0.1} if SAMPLERS[sampler_name].cost_depends_on == "state" else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sampler = SAMPLERS.create(sampler_name, **loose)
            image = sampler.sample(apply_guidance(denoiser, guides), noise, 3, labels=LABELS)
    except ValueError as refusal:
        assert calls == 0, f"refused after {calls} network calls"
        assert len(str(refusal)) > 30
        return False
    finally:
        denoiser.backbone.forward = forward
    assert image.shape == noise.shape
    assert bool(image.isfinite().all()), f"{sampler_name} with {guides} is not finite"
    return True
