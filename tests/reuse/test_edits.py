"""Hourglass edits: neutral to the bit, freeu as diffusers has it, composed with caches."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.utils.torch_utils import apply_freeu
from reuse_networks import denoiser_of, network, noise, sampled

from dinit.models.base import BACKBONES
from dinit.reuse.body import BlockCounts, body_of
from dinit.reuse.caches.base import CACHES
from dinit.reuse.edits.base import EDITS, FeatureForm, SkipEdit
from dinit.reuse.edits.freeu import FreeU
from dinit.reuse.edits.skip_tuning import SkipTuning
from dinit.samplers.guidance import apply_guidance

HOURGLASS = [name for name in BACKBONES if body_of(BACKBONES[name].preset("tiny")).takes]
FACTORS = {"freeu": ("b1", "b2", "s1", "s2"), "skip-tuning": ("bottom", "top")}
SKIP_EDITS = list(FACTORS)


@pytest.mark.parametrize("backbone", HOURGLASS)
@pytest.mark.parametrize("edit", SKIP_EDITS)
def test_factor_one_is_the_network_to_the_bit_and_another_is_not(edit: str, backbone: str) -> None:
    made = network(backbone)
    denoiser, x = denoiser_of(made), noise(made)
    plain = sampled(denoiser, x, 3)
    neutral = EDITS.create({"name": edit, **dict.fromkeys(FACTORS[edit], 1.0)})
    assert neutral.wrap(denoiser) is denoiser
    assert torch.equal(sampled(neutral.apply(denoiser, body_of(made)), x, 3), plain)  # the hooks alone
    edited = EDITS.create({"name": edit, **dict.fromkeys(FACTORS[edit], 0.6)}).wrap(denoiser)
    changed = sampled(edited, x, 3)
    assert not torch.allclose(changed, plain, atol=1e-4)
    assert torch.allclose(sampled(edited, x[:1], 3), changed[:1], atol=2e-5)
    assert torch.equal(sampled(denoiser, x, 3), plain)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("size", [(4, 4), (6, 5), (8, 16)])
def test_freeu_is_that_of_diffusers(level: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(level)
    x, skip = (torch.randn(2, channels, *size, generator=generator) for channels in (6, 4))
    settings: dict[str, Any] = {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}
    form = FeatureForm(0, *size)
    ours = FreeU(**settings).changed(x, skip, level, 3, form)
    theirs = apply_freeu(level, x.clone(), skip.clone(), **settings)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_on_tokens_freeu_is_that_of_their_map() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 3, 4, 6, generator=generator)
    first = torch.randn(2, 2, 3, generator=generator)
    tokens = torch.cat([first, maps.flatten(2).transpose(1, 2)], dim=1)
    x, skip = FreeU(s1=0.3).changed(tokens, tokens, 0, 1, FeatureForm(2, 8, 12))
    _, expected = FreeU(s1=0.3).changed(maps, maps, 0, 1, FeatureForm(0, 4, 6))
    assert torch.equal(skip[:, :2], first)
    assert torch.allclose(skip[:, 2:].transpose(1, 2).unflatten(2, (4, 6)), expected, atol=1e-6)
    assert torch.allclose(x[..., 0], 1.1 * tokens[..., 0])
    assert torch.equal(x[..., 1:], tokens[..., 1:])


def test_skip_tuning_goes_linearly_from_bottom_to_top() -> None:
    skip = torch.ones(1, 1, 2, 2)
    tuned = SkipTuning(bottom=0.5, top=0.9)
    factors = [float(tuned.changed(skip, skip, level, 5, FeatureForm(0, 2, 2))[1].mean()) for level in range(5)]
    assert factors == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])


def test_skip_tuning_is_a_network_with_its_skips_scaled() -> None:
    """A U-Net's first convolution after each join takes the skip's channels: scaling their weights is the same."""
    made = network("ddpm")
    scaled = copy.deepcopy(made)
    edited = SkipTuning(bottom=0.7, top=0.7).wrap(denoiser_of(made))
    x, cond = noise(made), denoiser_of(made).condition(None, 3)
    hooks = []

    class Scaled:
        def keep(self, skip: torch.Tensor) -> torch.Tensor:
            hooks.append("keep")
            return 0.7 * skip

        def take(self, x: Any, skip: torch.Tensor) -> tuple[Any, torch.Tensor]:
            return x, skip

    scaled.skip_hook = Scaled()
    with torch.no_grad():
        ours, theirs = edited(x, 0.5, cond).x0, denoiser_of(scaled)(x, 0.5, cond).x0
    assert len(hooks) == 4
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("backbone", ["unet", "dico", "dis"])
def test_edits_compose_with_each_other_with_caches_and_with_guidance(backbone: str) -> None:
    made = network(backbone)
    denoiser, x = denoiser_of(made), noise(made)
    both = EDITS.create("skip-tuning:bottom=0.7").wrap(EDITS.create("freeu").wrap(denoiser))
    counts = BlockCounts()
    one = sampled(CACHES.create("deepcache:interval=1").wrap(both, counts), x)
    assert counts.run == counts.whole > 0
    assert torch.equal(one, sampled(both, x))
    cached = CACHES.create("deepcache:interval=2").wrap(both)
    out = sampled(apply_guidance(cached, "cfg:scale=2.0"), x)
    assert out.isfinite().all()
    assert not torch.equal(sampled(cached, x), one)
    only = sampled(EDITS.create("freeu").wrap(denoiser), x)
    assert not torch.allclose(one, only, atol=1e-4)


class _Cut(SkipEdit):
    """No skip above 0.1: what it leaves depends on what was done before."""

    neutral = False

    def changed(self, x: Any, skip: Any, level: int, levels: int, form: Any) -> tuple[Any, Any]:
        return x, skip.clamp(max=0.1)


def test_several_edits_are_applied_in_their_order() -> None:
    made = network("unet")
    plain, x = denoiser_of(made), noise(made)
    cond = plain.condition([1, 2, 3], 3)

    class Both:
        def keep(self, skip: torch.Tensor) -> torch.Tensor:
            return skip

        def take(self, x: Any, skip: torch.Tensor) -> tuple[Any, torch.Tensor]:
            return x, (0.5 * skip).clamp(max=0.1)

    half, by_hand = SkipTuning(bottom=0.5, top=0.5), copy.copy(made)
    by_hand.skip_hook = Both()
    with torch.no_grad():
        expected = denoiser_of(by_hand)(x, 0.5, cond).x0
        assert torch.allclose(_Cut().wrap(half.wrap(plain))(x, 0.5, cond).x0, expected, atol=1e-6)
        assert not torch.allclose(half.wrap(_Cut().wrap(plain))(x, 0.5, cond).x0, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("freeu:b1=0", "b1 must be above 0"),
        ("freeu:b2=-1", "b2 must be above 0"),
        ("freeu:s1=-1", "s1 must be at least 0"),
        ("freeu:s2=-2", "s2 must be at least 0"),
        ("skip-tuning:bottom=-0.1", "bottom must be at least 0"),
        ("skip-tuning:top=-0.1", "top must be at least 0"),
    ],
)
def test_factors_out_of_range(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EDITS.create(spec)


@pytest.mark.parametrize("edit", SKIP_EDITS)
def test_a_network_without_skips_is_refused(edit: str) -> None:
    with pytest.raises(ValueError, match="needs a network with skip connections"):
        EDITS.create(edit).wrap(denoiser_of(network("dit")))
    with pytest.raises(ValueError, match="below all guidance"):
        EDITS.create(edit).wrap(apply_guidance(denoiser_of(network("unet")), "cfg:scale=2.0"))
