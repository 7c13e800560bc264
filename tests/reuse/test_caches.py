"""Caches: neutral to the bit, exact where features are constant or linear in t, counted, alone as in a batch."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from reuse_networks import denoiser_of, network, noise, sampled
from torch import Tensor, nn

from dinit.diffusion import EDM, VP, BackboneDenoiser, LinearFlow
from dinit.diffusion.parameterization import PARAMETERIZATIONS
from dinit.models.base import BACKBONES, Backbone, config_from_fields
from dinit.models.layers.blocks import run_block, run_blocks
from dinit.models.layers.skips import Skips
from dinit.reuse.body import BlockCounts, body_of
from dinit.reuse.caches.base import CACHES
from dinit.reuse.caches.deepcache import power_law
from dinit.samplers.guidance import apply_guidance

NAMES = CACHES.names()
CHAINS = ("delta", "taylor", "first-block")
HOURGLASS = ("deepcache", "encoder-reuse", "taylor", "first-block")
NEUTRAL = {"first-block": "threshold=0"}
PAIRS = [
    (cache, backbone)
    for backbone in BACKBONES.names()
    for cache in (HOURGLASS if body_of(BACKBONES[backbone].preset("tiny")).takes else CHAINS)
    if backbone != "dimr"  # three networks, each fed by all features of the one before
]


def test_the_pairs_cover_every_cache() -> None:
    assert {cache for cache, _ in PAIRS} == set(NAMES)


@pytest.mark.parametrize(("cache", "backbone"), PAIRS)
def test_neutral_is_no_cache_to_the_bit_and_another_setting_is_not(cache: str, backbone: str) -> None:
    made, option = network(backbone), NEUTRAL.get(cache, "interval=1")
    denoiser, counts = denoiser_of(made), BlockCounts()
    x = noise(made, 1)
    plain = sampled(denoiser, x, 3)
    neutral = CACHES.create(f"{cache}:{option}")
    assert neutral.neutral
    assert neutral.wrap(denoiser) is denoiser
    assert torch.equal(sampled(neutral.wrap(denoiser, counts), x, 3), plain)
    assert counts.run == counts.whole == 3 * len(body_of(made).blocks)
    cached = CACHES.create(cache if cache != "first-block" else "first-block:threshold=0.9")
    assert not torch.equal(sampled(cached.wrap(denoiser), x, 3), plain)
    assert made.block_hook is None
    assert made.skip_hook is None
    assert torch.equal(sampled(denoiser, x, 3), plain)


@pytest.mark.parametrize(("cache", "backbone"), [pair for pair in PAIRS if pair[1] in ("unet", "dit", "dis")])
@pytest.mark.parametrize("sampler", ["euler", "heun", "ddpm"])
def test_an_image_depends_neither_on_its_batch_nor_on_the_run_before(
    cache: str, backbone: str, sampler: str
) -> None:
    made = network(backbone)
    cached = CACHES.create(cache if cache != "first-block" else "first-block:threshold=0.3").wrap(denoiser_of(made))
    guided = apply_guidance(cached, "cfg:scale=2.0")
    x = noise(made)
    together = sampled(guided, x, sampler=sampler)
    assert torch.equal(sampled(guided, x, sampler=sampler), together)
    alone = sampled(guided, x[:1], sampler=sampler)
    assert torch.allclose(alone, together[:1], atol=2e-5)


@pytest.mark.parametrize("interval", [2, 3, 5])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_the_blocks_that_are_run_are_those_promised(interval: int, sampler: str) -> None:
    unet, dit, steps = network("unet"), network("dit"), 7
    body, whole = body_of(unet), math.ceil(steps / interval)
    evaluations = steps if sampler == "euler" else 2 * steps - 1
    fresh = whole if sampler == "euler" else whole + math.ceil((steps - 1) / interval)
    takes = body.takes
    outside = {
        # Above the outermost skip of the tiny U-Net lies its last block, on the way up all of them.
        f"deepcache:interval={interval}": sum(index > takes[-1] for index in body.blocks),
        f"encoder-reuse:interval={interval}": sum(index > takes[0] for index in body.blocks),
    }
    for spec, left in outside.items():
        counts = BlockCounts()
        sampled(CACHES.create(spec).wrap(denoiser_of(unet), counts), noise(unet), steps, sampler)
        assert counts.whole == evaluations * len(body.blocks)
        assert counts.run == fresh * len(body.blocks) + (evaluations - fresh) * left
    for spec, left in ((f"delta:interval={interval},blocks=1", 1), (f"taylor:interval={interval}", 0)):
        counts = BlockCounts()
        sampled(CACHES.create(spec).wrap(denoiser_of(dit), counts), noise(dit), steps, sampler)
        assert counts.run == fresh * 2 + (evaluations - fresh) * left


class _Term(nn.Module):
    """slope * label + offset, of every pixel, added to a share of the input."""

    def __init__(self, slope: float, offset: float, share: float) -> None:
        super().__init__()
        self.slope, self.offset, self.share = slope, offset, share

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        c = c[:, :1, None, None]
        return self.share * x[:, :1] + self.slope * c + self.slope * self.offset * c**2 + self.offset


@config_from_fields
class Affine(Backbone):
    """Blocks whose features are a polynomial of the time input; no time reaches them with slope = 0."""

    image_size: int = 4
    in_channels: int = 1
    num_classes: int = 2
    learn_sigma: bool = False
    dropout: float = 0.0
    slope: float = 0.0
    curved: bool = False
    share: float = 0.0
    hourglass: bool = False

    def build(self) -> None:
        self.cond_dim, self.label_embedding = 1, None
        self.blocks = nn.ModuleList(_Term(self.slope, 0.3 if self.curved else 0.0, self.share) for _ in range(4))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        c = noise_label.reshape(-1, 1).expand(len(x), 1) + cond
        if not self.hourglass:
            return run_blocks(self, self.blocks, x, c)
        skips, first = Skips(self), self.blocks[0]
        out = run_block(self, first, x, c)
        skips.keep(out)
        out = run_blocks(self, self.blocks[1:], out, c)
        out, skip = skips.take(out)
        return out + 0.1 * skip


def polynomial(order: int, hourglass: bool = False, share: float = 0.0) -> BackboneDenoiser:
    made = Affine(slope=0.7 if order else 0.0, curved=order == 2, share=share, hourglass=hourglass)
    return denoiser_of(made)


EXACT = [
    ("taylor:interval=3,order=0", 0),
    ("taylor:interval=3,order=1", 1),
    ("taylor:interval=2,order=2", 2),
    ("deepcache:interval=3", 0),
    ("encoder-reuse:interval=3", 0),
    ("first-block:threshold=10", 0),
    ("delta:interval=3", 0),
]


@pytest.mark.parametrize(("spec", "order"), EXACT)
@pytest.mark.parametrize("hourglass", [False, True])
def test_features_that_are_a_polynomial_in_t_are_cached_without_error(
    spec: str, order: int, hourglass: bool
) -> None:
    """Once there are as many evaluations as the polynomial has coefficients."""
    name = spec.partition(":")[0]
    if name not in (HOURGLASS if hourglass else CHAINS):
        pytest.skip("this network has no such region")
    # Residual caches keep what is added to the input, so x may pass through their blocks.
    share = 1.0 if name in ("delta", "first-block") and not hourglass else 0.0
    denoiser = polynomial(order, hourglass, share)
    cached = CACHES.create(spec).wrap(denoiser)
    cond = denoiser.condition([0, 1], 2)
    run = cond.run
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for step, t in enumerate([0.95, 0.9, 0.85, 0.7, 0.6, 0.55, 0.4, 0.2, 0.1]):
        x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=generator)
        here = cond.in_run(run).at_step(step)
        exact = denoiser(x, t, here).x0
        wrong = ((cached(x, t, here).x0 - exact).abs().max() / exact.abs().max()).item()
        interval = 2 if order == 2 else 3
        if step >= order * interval:
            worst = max(worst, wrong)
    assert worst < 1e-12


def test_a_forecast_of_too_low_an_order_is_wrong() -> None:
    denoiser = polynomial(2)
    cond = denoiser.condition([0], 1)
    x = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    cached = CACHES.create("taylor:interval=2,order=1").wrap(denoiser)
    wrong = [
        (cached(x, t, cond.at_step(i)).x0 - denoiser(x, t, cond).x0).abs().max().item()
        for i, t in enumerate([0.9, 0.8, 0.7, 0.6])
    ]
    assert wrong[0] == wrong[2] == 0
    assert wrong[3] > 1e-3


@pytest.mark.parametrize("process", [VP(), EDM(), LinearFlow()])
def test_every_process_takes_a_cache(process: Any) -> None:
    made = network("unet")
    denoiser = BackboneDenoiser(made, process, PARAMETERIZATIONS.create("edm" if isinstance(process, EDM) else "v"))
    cached = CACHES.create("encoder-reuse:interval=2,noise=0.003").wrap(denoiser)
    out = sampled(cached, noise(made))
    assert out.isfinite().all()
    assert 0 < (out - sampled(denoiser, noise(made))).abs().mean() < 1


def test_the_power_law_is_densest_at_its_center() -> None:
    points = sorted(power_law(100, 5, 30, 1.5))
    assert points[0] == 0
    assert len(points) == 20
    gaps = [b - a for a, b in itertools.pairwise(points)]
    assert min(gaps) == gaps[min(range(len(gaps)), key=lambda i: abs(points[i] + gaps[i] / 2 - 30))]
    assert gaps[-1] == max(gaps)


def test_images_that_have_not_changed_keep_their_features() -> None:
    """A batch of one image that changes and one that does not: the second is as it is alone, with no blocks run."""
    denoiser = denoiser_of(network("dit"))
    cached = CACHES.create("first-block:threshold=0.01").wrap(denoiser)
    cond = denoiser.condition([0, 1], 2)
    x = noise(network("dit"), 2)
    cached(x, 0.9, cond.at_step(0))
    moved = torch.cat([x[:1], 3 * x[1:]])
    after = cached(moved, 0.9, cond.at_step(1)).x0
    fresh = denoiser(moved, 0.9, cond).x0
    assert torch.equal(after[1:], fresh[1:])
    assert torch.allclose(after[:1], fresh[:1], atol=1e-6)


@pytest.mark.parametrize(
    ("spec", "backbone", "says"),
    [
        ("deepcache", "dit", "needs a network with skip connections, and DiT has none"),
        ("encoder-reuse", "dit", "needs a network with skip connections"),
        ("deepcache:branch=9", "unet", r"branch must be in 0 \.\. 3 of UNet, got 9"),
        ("delta", "unet", "needs blocks in a row"),
        ("delta:blocks=9", "dit", "leaves out 9 blocks, and DiT has 2"),
        ("taylor", "dimr", "needs blocks in a row"),
        ("first-block", "dimr", "needs blocks in a row"),
    ],
)
def test_a_network_without_the_blocks_is_refused(spec: str, backbone: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CACHES.create(spec).wrap(denoiser_of(network(backbone)))


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("deepcache:interval=0", "interval must be at least 1"),
        ("deepcache:branch=-1", "branch must be at least 0"),
        ("deepcache:schedule=wild", "'uniform' or 'power'"),
        ("deepcache:power=1", "power must be above 1"),
        ("encoder-reuse:interval=-2", "interval must be at least 1"),
        ("encoder-reuse:noise=-1", "noise must be at least 0"),
        ("delta:interval=0", "interval must be at least 1"),
        ("delta:switch=2", r"switch must be in \[0, 1\]"),
        ("delta:blocks=0", "blocks must be at least 1"),
        ("taylor:interval=0", "interval must be at least 1"),
        ("taylor:order=3", "order must be 0, 1 or 2"),
        ("taylor:branch=-1", "branch must be at least 0"),
        ("first-block:threshold=-1", "threshold must be at least 0"),
        ("first-block:longest=0", "longest must be at least 1"),
    ],
)
def test_options_out_of_range(spec: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CACHES.create(spec)


def test_a_cache_goes_below_guidance() -> None:
    guided = apply_guidance(denoiser_of(network("unet")), "cfg:scale=2.0")
    with pytest.raises(ValueError, match="below all guidance"):
        CACHES.create("deepcache").wrap(guided)
