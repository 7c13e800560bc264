"""What published weights were trained on, as numbers: training and sampling share these objects, and move together.

A new layout needs a row in PUBLISHED.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dinit.checkpoints.exporting import beta_arguments
from dinit.checkpoints.layouts import LAYOUTS
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.diffusion.discrete import VPDiscrete

DDPM, FLOW = ("vp-discrete", "epsilon"), ("flow", "reversed-velocity")
LEVELS, REVERSED = (249.0, 999.0), (0.75, 0.0)
WHOLE, UNIT = (-1.0, 1.0), (0.0, 1.0)

# Process and output; the network's time input at t = 1/4 and at t = 1; alpha / sigma at t = 1/4; the range of its
# pixels; the channels and the scale of its published guidance. Betas of a chain: linspace(1e-4, 0.02), for "dimr"
# linspace(sqrt 0.00085, sqrt 0.012)^2, and level 249 of 1000 is at t = 1/4.
PUBLISHED = {
    "adm": (*DDPM, LEVELS, 1.04939, WHOLE, None, 4.0),
    "adm-classifier": (*DDPM, LEVELS, 1.04939, WHOLE, None, 4.0),
    "adm-superres": (*DDPM, LEVELS, 1.04939, WHOLE, None, 4.0),
    "ddpm": (*DDPM, LEVELS, 1.04939, WHOLE, None, 4.0),
    "dic": (*DDPM, LEVELS, 1.04939, WHOLE, 3, 4.0),
    "dico": (*DDPM, LEVELS, 1.04939, WHOLE, 3, 4.0),
    "diffit": (*DDPM, LEVELS, 1.04939, WHOLE, 3, 4.0),
    "diffusers-dit": (*DDPM, LEVELS, 1.04939, WHOLE, 3, 4.0),
    "dimr": (*DDPM, LEVELS, 1.44257, WHOLE, None, 4.0),  # U-ViT's "scaled-linear" betas, of Stable Diffusion
    "dis": (*DDPM, LEVELS, 1.04939, WHOLE, 3, 4.0),
    "dit": (*DDPM, LEVELS, 1.04939, WHOLE, 3, 4.0),
    "lightningdit": (*FLOW, REVERSED, 3.0, WHOLE, 3, 6.7),  # time runs from noise to data
    "ncsnpp": ("ve", "score", (0.0840896, 50.0), 11.8921, UNIT, None, 4.0),  # sigma itself, 0.01^0.75 50^0.25
    "ncsnpp-sub-vp": ("sub-vp", "epsilon", (249.75, 999.0), 1.51927, WHOLE, None, 4.0),
    "ncsnpp-ve-discrete": ("ve-discrete", "score", (749.25, 0.0), 11.8921, UNIT, None, 4.0),  # the index of a level
    "ncsnpp-vp": ("vp", "epsilon", (249.75, 999.0), 1.04854, WHOLE, None, 4.0),
    "sit": (*FLOW, REVERSED, 3.0, WHOLE, 3, 4.0),
}


def test_every_layout_has_a_row() -> None:
    assert sorted(PUBLISHED) == LAYOUTS.names()


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_layout_says_what_the_published_program_does(name: str) -> None:
    layout = LAYOUTS[name]
    process, output, label, ratio, pixels, channels, scale = PUBLISHED[name]
    path, prediction = PROCESSES.create(layout.process), PARAMETERIZATIONS.create(layout.parameterization)
    assert (path.registry_name, prediction.registry_name) == (process, output)
    k = path.scales(torch.tensor([0.25, 1.0], dtype=torch.float64))
    assert prediction.noise_label(path, k).tolist() == pytest.approx(label, rel=1e-5, abs=1e-9)
    assert float(k.alpha[0] / k.sigma[0]) == pytest.approx(ratio, rel=1e-4)
    assert (layout.pixel_range, layout.guided_channels, layout.guidance_scale) == (pixels, channels, scale)


@pytest.mark.parametrize(
    ("schedule", "steps", "start", "end"),
    [("linear", 1000, 1e-4, 0.02), ("linear", 500, 2e-4, 0.04), ("scaled-linear", 1000, 0.00085, 0.012)],
)
def test_a_scheduler_gets_the_ends_that_a_schedule_has_by_default(
    schedule: Any, steps: int, start: float, end: float
) -> None:
    """Of a shorter linear chain each beta is larger, so that the noise at its end is the same."""
    given = beta_arguments(VPDiscrete(schedule, num_steps=steps))
    assert (given["num_train_timesteps"], given["beta_start"], given["beta_end"]) == pytest.approx(
        (steps, start, end)
    )
    own = beta_arguments(VPDiscrete(schedule, num_steps=steps, beta_start=0.003, beta_end=0.3))
    assert (own["beta_start"], own["beta_end"]) == (0.003, 0.3)
