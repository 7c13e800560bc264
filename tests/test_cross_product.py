"""Every registered backbone × process × parameterization × sampler × guidance: an image, or a reason why not.

The product of all five is near a million runs. Two walks stand for it. Every backbone × process takes a few
samplers, and of parameterizations and guidances those that it and they have met least, as many as let every two
entries of any two registries meet. Where more than two meet, the network is the part that no sampler and
no guidance can see: every sampler × guidance runs on a bare one, with and without learned variances, on a third of
the processes.
"""

from __future__ import annotations

import warnings
from collections import Counter
from functools import cache
from itertools import combinations, product

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
        return not apply_guidance(
            GaussianDenoiser(PROCESSES.create("vp"), 0.0, 1.0, (1, 1, 1)), name
        ).required_outputs
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


# Guidances that need a second model; those that return more than x0, with the samplers that use it. Nothing else
# is refused: a change that makes more combinations refuse fails here.
NEEDS_A_MODEL = {"autoguidance", "classifier", "discriminator"}
NEEDS_A_SAMPLER = {"cfg++": {"ddim"}}


def should_refuse(sampler: str, guides: tuple[str, ...]) -> bool:
    """Whether a sampler and guidances at their defaults do not go together."""
    return any(g in NEEDS_A_MODEL or sampler not in NEEDS_A_SAMPLER.get(g, {sampler}) for g in guides)


Run = tuple[str, str, str, str, tuple[str, ...]]  # backbone, process, sampler, parameterization, guidances


@cache
def runs() -> dict[tuple[str, str], list[Run]]:
    """As few samplers for every backbone × process as let every two entries of any two registries meet."""
    least = -(-max(len(SAMPLERS) * len(others) for others in (GUIDES, PARAMETERIZATIONS, BACKBONES)) // len(PAIRS))
    return next(plan for count in range(least, len(SAMPLERS) + 1) if not missing(plan := planned(count)))


def planned(count: int) -> dict[tuple[str, str], list[Run]]:
    """`count` samplers for every backbone × process, each with the entries that it has met least."""
    met: Counter[frozenset] = Counter()
    choices = [[(2, name) for name in SAMPLERS], [(3, name) for name in PARAMETERIZATIONS]]
    choices.append([(4, tuple(guides)) for guides in GUIDES])
    plan = {}
    for backbone, process in PAIRS:
        plan[backbone, process] = []
        for _ in range(count):
            run = [(0, backbone), (1, process)]
            for options in choices:
                weights = [sum(0.5 ** met[frozenset((one, other))] for one in run) for other in options]
                run.append(options[weights.index(max(weights))])
            met.update(frozenset(two) for two in combinations(run, 2))
            plan[backbone, process].append(tuple(name for _, name in run))
    return plan


def missing(plan: dict[tuple[str, str], list[Run]]) -> set[tuple[object, object]]:
    """Pairs of entries of two registries that do not meet."""
    entries = (BACKBONES, PROCESSES, SAMPLERS, PARAMETERIZATIONS, [tuple(guides) for guides in GUIDES])
    walked = [run for some in plan.values() for run in some]
    return {
        pair
        for i, j in combinations(range(5), 2)
        for pair in set(product(entries[i], entries[j])) - {(run[i], run[j]) for run in walked}
    }


def test_over_all_tests_every_two_entries_meet() -> None:
    assert missing(runs()) == set()
    assert missing(planned(1)) != set()  # so they would have been seen
    assert len(runs()["dit", "vp"]) <= len(SAMPLERS) // 4  # or the plan is a bad one


@pytest.mark.parametrize(("backbone_name", "process_name"), PAIRS)
@torch.no_grad()
def test_finite_image_or_refusal(backbone_name: str, process_name: str) -> None:
    backbone = tiny(backbone_name)
    noise = noise_for(backbone)
    denoisers = {name: read(backbone, process_name, name) for name in PARAMETERIZATIONS}
    for _, _, sampler_name, pair_name, guides in runs()[backbone_name, process_name]:
        made = _one_image(denoisers[pair_name], sampler_name, guides, noise)
        assert made != should_refuse(sampler_name, guides), (sampler_name, pair_name, guides)


class Bare(torch.nn.Module):
    """The least that BackboneDenoiser asks of a network: what it says depends on image, time and condition."""

    num_classes, in_channels, image_size, dtype = 10, 2, 4, torch.float32

    def __init__(self, learned_variance: bool) -> None:
        super().__init__()
        self.out_channels = self.in_channels * (1 + learned_variance)
        generator = torch.Generator().manual_seed(2)
        self.embedding = torch.randn(self.num_classes + 1, self.in_channels, generator=generator)
        self.mixing = 0.3 * torch.randn(self.out_channels, self.in_channels, 1, 1, generator=generator)

    def embed(self, labels: torch.Tensor) -> torch.Tensor:
        return self.embedding[labels]

    def forward(self, x: torch.Tensor, noise_label: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        inner = x.tanh() + (cond + noise_label[:, None].to(x.dtype).sin())[:, :, None, None]
        return torch.nn.functional.conv2d(inner, self.mixing)


@pytest.mark.parametrize("process_name", PROCESSES.names())
@torch.no_grad()
def test_finite_image_or_refusal_of_a_bare_network(process_name: str) -> None:
    denoisers = [read(Bare(learned), process_name, name) for learned in (False, True) for name in PARAMETERIZATIONS]
    noise = noise_for(denoisers[0].backbone)
    for i, (sampler_name, guides) in enumerate(product(SAMPLERS, GUIDES)):
        if (i + PROCESSES.names().index(process_name)) % 3:
            continue
        shift = i // len(GUIDES)  # or parameterizations and guidances would keep step
        made = _one_image(denoisers[(i + shift) % len(denoisers)], sampler_name, tuple(guides), noise)
        assert made != should_refuse(sampler_name, tuple(guides)), (sampler_name, guides)


def noise_for(backbone: Backbone | Bare) -> torch.Tensor:
    size = backbone.image_size
    return torch.randn(2, backbone.in_channels, size, size, generator=torch.Generator().manual_seed(1))


def read(backbone: Backbone | Bare, process_name: str, pair_name: str) -> BackboneDenoiser:
    """The denoiser; where the pair is singular at pure noise, short of it, as the refusal suggests."""
    process, pair = PROCESSES.create(process_name), PARAMETERIZATIONS.create(pair_name)
    try:
        return BackboneDenoiser(backbone, process, pair)
    except ValueError as refusal:
        assert "singular" in str(refusal)
        assert "Use " in str(refusal)
        return BackboneDenoiser(backbone, process, pair, t_max=0.999)


def _one_image(denoiser: BackboneDenoiser, sampler_name: str, guides: tuple[str, ...], noise: torch.Tensor) -> bool:
    """Whether an image was made; a refusal must explain itself before the first network call."""
    calls = 0
    forward = denoiser.backbone.forward

    def counting(*args):
        nonlocal calls
        calls += 1
        return forward(*args)

    denoiser.backbone.forward = counting
    # Random networks are rough: to an adaptive solver's usual tolerances they take hundreds of evaluations.
    loose = {"rtol": 0.1, "atol": 0.1} if SAMPLERS.create(sampler_name).claims().cost_depends_on == "state" else {}
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
    assert image.dtype == noise.dtype, f"{sampler_name} turns {noise.dtype} into {image.dtype}"
    assert bool(image.isfinite().all()), f"{sampler_name} with {guides} is not finite"
    return True
