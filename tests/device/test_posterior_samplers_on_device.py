"""Every posterior sampler on a device that is not the host's: the same numbers, no read-back, no waiting copy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from held import Place, on_both
from meta import META, meta_device
from small import small_denoiser, small_noise
from torch import Tensor

from dinit.diffusion.continuous import EDM, VP, LinearFlow
from dinit.inverse import OPERATORS, POSTERIOR_SAMPLERS, Measurement, PosteriorSampler

SHORT = {
    "repaint": {"resamples": 2, "jump_length": 2},
    "daps": {"ode_steps": 2, "langevin_steps": 2},
    "tds": {"particles": 2},
    "mcmc": {"iterations": 2},
}
OPERATOR = {"name": "downscale", "factor": 2}


def restoring(name: str, noise_std: float) -> PosteriorSampler:
    """The sampler with a measurement on the host, as a user gives it."""
    operator = OPERATORS.create(OPERATOR)
    seen = Measurement(operator, operator(small_noise()) / 2, noise_std)
    return replace(POSTERIOR_SAMPLERS.create({"name": name, **SHORT.get(name, {})}), measurement=seen)


@pytest.mark.parametrize("noise_std", [0.0, 0.1])
@pytest.mark.parametrize("name", POSTERIOR_SAMPLERS)
def test_posterior_sampler(name: str, noise_std: float) -> None:
    with torch.no_grad():
        for process in (VP(), EDM()) if noise_std else (LinearFlow(),):
            grid = torch.tensor([process.scales(1.0).time, 0.7, 0.4, 0.2], dtype=torch.float64)

            def run(place: Place, process=process, grid: Tensor = grid) -> list[Tensor]:
                denoiser = small_denoiser(process, place.device)
                sampler = restoring(name, noise_std)  # an operator keeps its matrices of every device
                steps = sampler.iterate(denoiser, place.put(small_noise()), labels=[1, 3], grid=grid)
                place.watch.waits.clear()  # before the first step
                *_, last = steps
                return [last.x_s, last.x0]

            watch = on_both(run)
            assert watch.read_backs == []
            assert watch.waits == []
        sampler = restoring(name, noise_std)
        with meta_device() as watch:
            steps = sampler.iterate(
                small_denoiser(VP(), META), small_noise().to(META), labels=[1, 3], grid=[0.9, 0.5]
            )
            assert [step.x_s.is_meta for step in steps] == [True] * 2
            assert watch.read_backs == []
