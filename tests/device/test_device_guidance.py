"""Every guidance on a device that is not the host's, alone and inside CFG, in a run and at one time a sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from held import Place, on_both
from meta import META, meta_device
from small import SHAPE, small_denoiser, small_noise
from torch import Tensor

from dinit.diffusion import Denoiser, Process, RunContext
from dinit.diffusion.continuous import EDM, VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.inverse import Matrix, Measurement, PosteriorGuidance
from dinit.samplers.base import SAMPLERS, Sampler
from dinit.samplers.guidance import apply_guidance
from dinit.samplers.guidance.base import GUIDANCES
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.guidance.schedule import SCHEDULES
from dinit.samplers.noise import NoiseSource

PROCESSES: list[Process] = [VP(), EDM(), LinearFlow()]
LABELS = [1, 3]  # the second is the null class


def logits(x_t: Tensor, noise_label: Tensor) -> Tensor:
    """Of three classes, from an image and a time."""
    return torch.stack([x_t.mean((1, 2, 3)) * k + noise_label / 1000 for k in range(3)], dim=1)


def realness(x_t: Tensor, t: Any, labels: Tensor) -> Tensor:
    """The logit of a discriminator."""
    return x_t.square().mean((1, 2, 3)) * (1 + labels)


COMPANIONS: dict[str, Callable[[Denoiser], dict[str, Any]]] = {
    "autoguidance": lambda denoiser: {"weak": denoiser},
    "noise-damped": lambda denoiser: {"base": denoiser, "max_log_snr": 0.0},
    "classifier": lambda denoiser: {"classifier": logits},
    "discriminator": lambda denoiser: {"discriminator": realness},
}
OTHERS: list[dict[str, Any]] = [
    {"name": "cfg", "low": -2.0, "high": 2.0, "rescale": 0.5, "channels": 1},
    *({"name": "cfg", "schedule": schedule} for schedule in SCHEDULES),
    {"name": "apg", "momentum": -0.5, "radius": 2.0},
    {"name": "cads", "on": "label", "tau1": 0.2},
    {"name": "cfg-zero*", "zero_steps": 1},
    {"name": "classifier", "form": "mean", "low": -2.0, "unconditional": True},
    {"name": "compose", "how": "mixture"},
    {"name": "autoguidance", "low": -2.0},
    *({"name": name, "measured": True} for name in GUIDANCES if issubclass(GUIDANCES[name], PosteriorGuidance)),
]


def measurement() -> Measurement:
    """On the host, as a user has it."""
    matrix = torch.randn(6, math.prod(SHAPE), generator=torch.Generator().manual_seed(3))
    return Measurement(Matrix(matrix), torch.ones(2, 6), noise_std=0.1)


def guided(spec: dict[str, Any], denoiser: Denoiser, inside: bool) -> Denoiser:
    """The denoiser with the guidance, in CFG too."""
    companions = COMPANIONS.get(spec["name"], lambda _: {})(denoiser)
    if spec.get("measured"):
        spec, companions = {"name": spec["name"]}, {"measurement": measurement()}
    return apply_guidance(denoiser, [GUIDANCES.create({**spec, **companions}), *([CFG(2.0)] if inside else [])])


def sampler_for(denoiser: Denoiser) -> Sampler:
    """One that uses all that the guidance sets."""
    fits = (name for name in ("dpmpp-2m", *SAMPLERS)
            if denoiser.required_outputs <= SAMPLERS.create(name).claims().supported_outputs)  # fmt: skip
    return SAMPLERS.create(next(fits))


def run(spec: dict[str, Any], process: Process, inside: bool, place: Place) -> list[Tensor]:
    """The end of a run, and predictions at one time a sample, which are given on the host and on the device."""
    denoiser = guided(spec, small_denoiser(process, place.device), inside)
    x, times = place.put(small_noise()), torch.tensor([0.8, 0.3], dtype=torch.float64)
    grid = torch.tensor([process.scales(1.0).time, 0.7, 0.2], dtype=torch.float64)
    found = [sampler_for(denoiser).sample(denoiser, x, labels=LABELS, grid=grid)]
    source = NoiseSource.from_seed(0, 2)
    cond = denoiser.condition(LABELS, 2, place.device).in_run(RunContext(noise_source=source, steps=3))
    place.watch.waits.clear()  # before the first step
    for t in (times, place.put(times)):
        predicted = denoiser(x, t, cond)
        found += [predicted.x0, predicted.eps, predicted.velocity]
    return found


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in CFG"])
@pytest.mark.parametrize("spec", [*({"name": name} for name in GUIDANCES), *OTHERS], ids=str)
def test_guidance(spec: dict[str, Any], inside: bool) -> None:
    """The same numbers as on the host, no read-back and no wait; and again by PyTorch's own rules for devices."""
    if inside and spec["name"] == "cfg++":
        pytest.skip("CFG of an eps that is not of its x0 is refused nowhere and means nothing")
    with torch.no_grad():
        for process in PROCESSES[2:] if inside else PROCESSES:
            watch = on_both(lambda place, process=process: run(spec, process, inside, place))
            assert watch.read_backs == []
            assert watch.waits == []
        with meta_device() as watch:
            denoiser = guided(spec, small_denoiser(VPDiscrete(), META), inside)
            watch.refuse_waits = True
            x = small_noise().to(META, non_blocking=True)
            steps = sampler_for(denoiser).iterate(denoiser, x, labels=LABELS, grid=[1.0, 0.7, 0.2])
            assert [step.x_s.is_meta for step in steps] == [True] * 3
            assert watch.read_backs == []
