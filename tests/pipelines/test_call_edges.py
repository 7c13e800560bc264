"""Values of a call at which a wrong comparison gives another call: 0, 1, and none among others."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from dinit.checkpoints.interop.scheduler_sampler import SchedulerSampler, sampler_from_diffusers
from dinit.cli.options import CallFlags
from dinit.pipelines.call import guidance_at_scale, make_grid, make_guidance, make_sampler
from dinit.pipelines.labels import make_keys
from dinit.samplers import DDIM
from dinit.samplers.grids.times import Times
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.guidance.clip import ClipX0


def test_an_eta_of_0_is_given_too() -> None:
    assert make_sampler(DDIM(eta=1.0), eta=0.0) == DDIM(eta=0.0)
    assert make_sampler("ddim:eta=0.7") == DDIM(eta=0.7)
    assert make_sampler(DDIM(eta=0.7), eta=None) == DDIM(eta=0.7)


@pytest.mark.parametrize(("scale", "left"), [(0.0, ()), (1.0, ()), (1.01, (CFG(1.01),)), (4.0, (CFG(4.0),))])
def test_a_scale_of_1_or_less_is_no_cfg(scale: float, left: tuple[CFG, ...]) -> None:
    assert guidance_at_scale((), scale) == left
    assert guidance_at_scale((CFG(2.0),), scale) == left
    assert guidance_at_scale((CFG(2.0), ClipX0()), scale) == (*left, ClipX0())
    assert guidance_at_scale((CFG(2.0, channels=3),), 4.0) == (CFG(4.0, channels=3),)


def test_none_alone_is_no_guidance() -> None:
    assert make_guidance("none") == make_guidance(None) == make_guidance([]) == ()
    assert make_guidance(0) == (CFG(0.0),)
    assert CallFlags(guidance=["none"]).options().get("guidance") == []
    assert CallFlags(guidance=["none", "2"]).options().get("guidance") == [{"name": "none"}, 2.0]
    assert "guidance" not in CallFlags().options()


def test_keys_count_from_the_start_index() -> None:
    assert make_keys(7, 3, start_index=2) == ((7, 2), (7, 3), (7, 4))
    assert make_keys([7, 8], 2) == ((7, 0), (8, 0))
    assert make_keys(0, 1) == ((0, 0),)


def test_eta_is_added_to_the_options_of_a_scheduler() -> None:
    scheduler = DDIMScheduler(clip_sample=False)
    sampler = make_sampler(
        sampler_from_diffusers(scheduler, {"use_clipped_model_output": True, "eta": 0.2}), eta=0.5
    )
    assert isinstance(sampler, SchedulerSampler)
    assert sampler.options == {"use_clipped_model_output": True, "eta": 0.5}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_times_of_a_tensor_are_its_numbers(dtype: torch.dtype) -> None:
    times = torch.linspace(1.0, 0.1, 7, dtype=dtype)
    grid = make_grid(times)
    assert isinstance(grid, Times)
    assert list(grid.values) == times.tolist()
