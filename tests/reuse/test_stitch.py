"""Stitched denoisers: those of one law give that law, on any processes; networks by class and under guidance."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from reuse_networks import denoiser_of, network, noise, sampled

from dinit.diffusion import EDM, VP, LinearFlow
from dinit.models import MixtureDenoiser
from dinit.reuse import CACHES, Stitched
from dinit.samplers.guidance import CFG

PROCESSES = [VP(), EDM(), LinearFlow()]


def mixture(process: Any) -> MixtureDenoiser:
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(3, 1, 2, 2, generator=generator, dtype=torch.float64)
    return MixtureDenoiser(process, means, 0.1 + means**2 / 4, component_class=torch.tensor([0, 1, 1]))


@pytest.mark.parametrize(
    ("first", "second"), itertools.product(PROCESSES, PROCESSES), ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize("log_snr", [-20.0, -1.0, 0.0, 3.0, 50.0])
def test_two_exact_denoisers_of_one_law_stitched_anywhere_are_that_law(
    first: Any, second: Any, log_snr: float
) -> None:
    exact = mixture(first)
    if log_snr == -20 and type(second) is not type(first):
        log_snr = -6.0  # the noisiest that all of the processes have
    stitched = Stitched(exact, mixture(second), log_snr)
    labels = [0, 1, 2]
    x = torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cond = stitched.condition(labels, 3)
    for t in (0.05, 0.3, 0.5, 0.8, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)):
        k = exact.scales(t)
        state = k.like(x).alpha * exact.means[:3] + k.like(x).sigma * x
        ours, theirs = stitched(state, t, cond).x0, exact(state, t, exact.condition(labels, 3)).x0
        assert torch.allclose(ours, theirs, atol=1e-7)


def test_each_network_is_evaluated_on_its_side() -> None:
    early, late = denoiser_of(network("unet")), denoiser_of(network("dit"))
    stitched = Stitched(early, late, 0.0)
    x, labels = noise(early.backbone), [0, 1, 2]
    cond = stitched.condition(labels, 3)
    with torch.no_grad():
        for t in (0.3, 0.7):
            one = late if early.process.scales(t).log_snr >= 0 else early
            assert torch.equal(stitched(x, t, cond).x0, one(x, t, one.condition(labels, 3)).x0)
        times = torch.tensor([0.3, 0.7, 0.4])
        mixed = stitched(x, times, cond).x0
        for row, one in enumerate((late, early, late)):
            alone = one(x, times, one.condition(labels, 3)).x0
            assert torch.equal(mixed[row], alone[row])


def test_by_class_the_others_stay_with_the_first() -> None:
    early, late = denoiser_of(network("unet")), denoiser_of(network("dit"))
    stitched = CFG(2.0).wrap(Stitched(early, late, -50.0, classes=[1]))
    x, labels = noise(early.backbone), [0, 1, 2]
    with torch.no_grad():
        ours = stitched(x, 0.4, stitched.condition(labels, 3)).x0
        for row, one in enumerate((early, late, early)):
            guided = CFG(2.0).wrap(one)
            assert torch.allclose(ours[row], guided(x, 0.4, guided.condition(labels, 3)).x0[row], atol=1e-5)


def test_denoisers_may_be_guided_and_cached_each_in_its_way() -> None:
    early = CACHES.create("deepcache:interval=2").wrap(denoiser_of(network("unet")))
    late = CFG(2.0).wrap(denoiser_of(network("dit")))
    x = noise(network("unet"))
    out = sampled(Stitched(early, late, 0.0), x)
    assert out.isfinite().all()
    assert not torch.equal(out, sampled(Stitched(denoiser_of(network("unet")), late, 0.0), x))
    assert torch.equal(sampled(Stitched(early, late, 1e6), x), sampled(early, x))


def test_what_does_not_fit_is_refused() -> None:
    early = denoiser_of(network("unet"))
    with pytest.raises(ValueError, match="the same classes; early has 10, late 3"):
        Stitched(early, denoiser_of(network("ddpm", num_classes=3)), 0.0)
    with pytest.raises(ValueError, match=r"one shape; early has \(1, 8\), late \(1, 16\)"):
        Stitched(early, denoiser_of(network("dit", image_size=16)), 0.0)
    with pytest.raises(ValueError, match=r"classes must be in 0 \.\. 9, got \[12\]"):
        Stitched(early, early, 0.0, classes=[12])
    with pytest.raises(ValueError, match="must be a number, got nan"):
        Stitched(early, early, float("nan"))
    with pytest.raises(ValueError, match=r"trained down to a log-SNR of -8\.76 and cannot be read at -20"):
        Stitched(mixture(LinearFlow()), mixture(EDM()), -20.0)
