"""Caches and edits on a device that is not the host's: the same numbers, no read-back but where one is stated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from held import Place, on_both
from torch import Tensor

from dinit.diffusion import BackboneDenoiser
from dinit.diffusion.continuous import VP
from dinit.diffusion.parameterization import PARAMETERIZATIONS
from dinit.models.base import BACKBONES
from dinit.reuse import CACHES, EDITS
from dinit.samplers import SAMPLERS
from dinit.samplers.guidance import CFG

STEPS = 4
READS = {"first-block": 1}  # once an evaluation


def _denoiser(backbone: str, device: torch.device) -> BackboneDenoiser:
    torch.manual_seed(0)
    network = BACKBONES[backbone].preset("tiny", num_classes=3).eval().to(device)
    return BackboneDenoiser(network, VP(), PARAMETERIZATIONS.create("v"))


def _fits(made: Any, backbone: str) -> bool:
    try:
        made.wrap(_denoiser(backbone, torch.device("cpu")))
    except ValueError:
        return False
    return True


PAIRS = [
    (registry, name, backbone)
    for registry in (CACHES, EDITS)
    for name in registry
    for backbone in ("unet", "dit")
    if _fits(registry.create(name), backbone)
]


def test_every_entry_has_a_network() -> None:
    assert {name for _, name, _ in PAIRS} == {*CACHES, *EDITS}


@pytest.mark.parametrize(("registry", "name", "backbone"), PAIRS)
def test_on_a_device(registry: Any, name: str, backbone: str) -> None:
    made = registry.create(name)

    def run(place: Place) -> list[Tensor]:
        denoiser = CFG(2.0).wrap(made.wrap(_denoiser(backbone, place.device)))
        network = BACKBONES[backbone].preset("tiny")
        noise = torch.randn(2, network.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
        steps = SAMPLERS.create("dpmpp-2m").iterate(denoiser, place.put(noise), steps=STEPS, labels=[0, 2])
        *_, last = steps
        return [last.x_s]

    with torch.no_grad():
        watch = on_both(run)
    # The first evaluation has nothing to compare with.
    assert len(watch.read_backs) == READS.get(name, 0) * (STEPS - 1)
