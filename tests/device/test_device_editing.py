"""Every editing method on a device that is not the host's: the same numbers, no read-back, no waiting copy."""

from __future__ import annotations

import pytest
import torch
from held import Place, on_both
from meta import META, meta_device
from small import small_denoiser, small_noise
from torch import Tensor

from dinit.diffusion.continuous import EDM, VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.inverse import EDITING_METHODS, Edited, EditingMethod

SOURCE, TARGET = [1, 3], [2, 0]  # the null class among them


def method(name: str) -> EditingMethod:
    """With few iterations, where it has any."""
    fields = EDITING_METHODS[name].__dataclass_fields__
    return EDITING_METHODS.create({"name": name, **({"iterations": 2} if "iterations" in fields else {})})


@pytest.mark.parametrize("name", EDITING_METHODS)
def test_editing_method(name: str) -> None:
    for process in (VP(), EDM(), LinearFlow()):
        grid = torch.tensor([process.scales(1.0).time, 0.7, 0.2], dtype=torch.float64)

        def run(place: Place, process=process, grid: Tensor = grid) -> list[Tensor]:
            denoiser, x = small_denoiser(process, place.device), place.put(small_noise())
            source, target = place.put(torch.tensor(SOURCE)), place.put(torch.tensor(TARGET))
            place.watch.waits.clear()
            found: Edited = method(name).edit(denoiser, x, source, target, 3, grid=grid, guidance="cfg:scale=2")
            return [found.x, found.reconstruction]

        watch = on_both(run)
        assert watch.read_backs == []
        assert watch.waits == []
    with meta_device() as watch:
        denoiser, x = small_denoiser(VPDiscrete(), META), small_noise().to(META, non_blocking=True)
        found = method(name).edit(denoiser, x, SOURCE, TARGET, 3)
        assert found.x.is_meta
        assert found.reconstruction.is_meta
        assert watch.read_backs == []
