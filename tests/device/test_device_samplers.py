"""Every sampler on a device that is not the host's: the same numbers, no read-back, no wait for a copy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from held import meta_with_numbers, on_host, to_meta
from meta import META, Watch, meta_device
from small import small_denoiser, small_noise
from torch import Tensor

from dinit.diffusion import PROCESSES, Denoiser, Process
from dinit.diffusion.continuous import EDM, VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.samplers.base import SAMPLERS, Sampler

USUAL: list[Process] = [VP(), EDM(), LinearFlow(), VPDiscrete()]
LABELS = [0, 3]
STEPS = 4


def last_of(sampler: Sampler, denoiser: Denoiser, noise: Tensor, watch: Watch | None = None, **given: Any) -> Any:
    """The last step of a run; what was uploaded before the first is not counted."""
    steps = sampler.iterate(denoiser, noise, **{"labels": LABELS, **given})
    if watch is not None:
        assert watch.read_backs == [], "before the first step"
        watch.waits.clear()
    *_, last = steps
    return last


def times_of(sampler: Sampler, process: Process) -> Tensor:
    """Of a run, given one by one, which is not rehearsed: it would take most of the time."""
    t_min = process.t_min
    return sampler.grid_for(process).times(process, STEPS, t_min, 1.0)


def same_on_device(sampler: Sampler, process: Process, **given: Any) -> bool:
    """A run on the host and on the device: the same sample, or the same refusal. Whether it ran."""
    noise, refusal = small_noise(), None
    given.setdefault("grid", times_of(sampler, process))
    with torch.no_grad():
        try:
            expected = last_of(sampler, small_denoiser(process), noise, **given)
        except ValueError as error:
            refusal = str(error)
        with meta_with_numbers() as watch:
            denoiser = small_denoiser(process, META)
            if refusal is not None:
                with pytest.raises(ValueError) as raised:  # noqa: PT011 (the host's words are the pattern)
                    last_of(sampler, denoiser, to_meta(noise), **given)
                assert str(raised.value) == refusal
                return False
            found = last_of(sampler, denoiser, to_meta(noise), watch, **given)
    assert torch.equal(on_host(found.x_s), expected.x_s)
    assert torch.equal(on_host(found.x0), expected.x0)
    assert found.nfe == expected.nfe
    assert watch.waits == [], "an upload that waits for the device"
    if (claims := sampler.claims()).cost_depends_on == "state":
        trials = found.nfe // (claims.nfe_per_step - 1)  # one evaluation may be that of the trial before
        assert 0 < len(watch.read_backs) <= trials, "an adaptive sampler reads back once a trial"
    else:
        assert watch.read_backs == []
    return True


def shapes_on_device(sampler: Sampler, process: Process, **given: Any) -> None:
    """A run of shapes alone, by the rules that PyTorch's kernels have for mixed devices."""
    given.setdefault("grid", times_of(sampler, process))
    with torch.no_grad(), meta_device() as watch:
        found = last_of(sampler, small_denoiser(process, META), small_noise().to(META), watch, **given)
        assert found.x_s.is_meta
        assert watch.read_backs == []
        assert watch.waits == []


def create(name: str) -> Sampler:
    """The sampler, with a tolerance that few trials meet where it has one."""
    made = SAMPLERS.create(name)
    loose = {option: 0.2 for option in ("rtol", "atol") if hasattr(made, option)}
    return replace(made, **loose)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name: str) -> None:
    """On a VP, an EDM, a flow process and a discrete chain."""
    sampler = create(name)
    ran = [process for process in USUAL if same_on_device(sampler, process)]
    assert ran
    if sampler.claims().cost_depends_on != "state":
        shapes_on_device(sampler, ran[0])


@pytest.mark.parametrize("name", PROCESSES)
def test_processes(name: str) -> None:
    """Of every kind, in a deterministic, a stochastic and an adaptive run."""
    for sampler in ("dpmpp-2m", "ddpm", "dpm-adaptive"):
        assert same_on_device(create(sampler), PROCESSES.create(name))
