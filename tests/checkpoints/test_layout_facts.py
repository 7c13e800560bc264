"""What published weights were trained on, as numbers: training and sampling share these objects, and move together.

A new layout needs a row in PUBLISHED.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dinit.checkpoints.exporting import beta_arguments
from dinit.checkpoints.layouts import LAYOUTS
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.diffusion.continuous import LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.samplers import GRIDS

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


CHAIN = {"sampler": {"name": "ddpm", "variance": "learned-range"}, "steps": 250, "grid": {"name": "respaced"}}
CFG3 = [{"name": "cfg", "scale": 4.0, "channels": 3}]
PC = {"name": "predictor-corrector", "predictor": "reverse-diffusion", "corrector": "langevin", "snr": 0.16}
# Layout -> sampler, steps, grid and guidance of the published program, for a network with a null label that learned
# its variance where the program's does. Only ADM's program clips x_0 (clip_denoised is True in its samplers).
SAMPLING: dict[str, dict[str, Any]] = {
    "adm": {**CHAIN, "guidance": [{"name": "cfg", "scale": 4.0, "channels": None}, {"name": "clip-x0"}]},
    **{name: {**CHAIN, "guidance": CFG3} for name in ("dit", "dic", "dico", "dis", "diffit", "diffusers-dit")},
    "sit": {"sampler": {"name": "heun"}, "steps": 50, "guidance": CFG3},
    "lightningdit": {
        "sampler": {"name": "euler"},
        "steps": 249,  # between 250 times
        "grid": {"name": "shifted", "shift": 1 / 0.3},
        "guidance": [{"name": "cfg", "scale": 6.7, "channels": 3, "low": 2 * math.log(0.125 / 0.875)}],
    },
    "ncsnpp": {"sampler": PC, "steps": 1000, "grid": {"name": "uniform"}},
    "ncsnpp-ve-discrete": {"sampler": PC, "steps": 1000, "grid": {"name": "uniform"}},
    "ncsnpp-vp": {"sampler": {"name": "euler-maruyama"}, "steps": 1000},
    "ncsnpp-sub-vp": {"sampler": {"name": "euler-maruyama"}, "steps": 1000},
    "ddpm": {**CHAIN, "steps": 1000},
}


@pytest.mark.parametrize("name", sorted(SAMPLING))
def test_a_layout_samples_as_its_program(name: str) -> None:
    layout, wanted = LAYOUTS[name](), SAMPLING[name]
    made = layout.sampling(PROCESSES.create(layout.process), learned=True)
    assert made == {key: value for key, value in wanted.items() if key != "guidance"}
    if "guidance" in wanted:
        assert layout.guidance(guided=True) == wanted["guidance"]
        assert [one["name"] for one in layout.guidance(guided=False)] == ["clip-x0"] * (name == "adm")


def test_shorter_chains_and_fixed_variances() -> None:
    short = LAYOUTS["dit"]().sampling(VPDiscrete(num_steps=100), learned=False)
    assert (short["steps"], short["sampler"]["variance"]) == (100, "fixed-large")
    assert LAYOUTS["sit"]().sampling(PROCESSES.create("gvp"), learned=False)["sampler"] == {"name": "heun"}


def test_lightningdits_times_are_those_of_its_shift() -> None:
    """Its 250 even times from noise (0) to data (1), each as 0.3 u / (1 - 0.7 u)."""
    made = LAYOUTS["lightningdit"]().sampling(LinearFlow(), learned=False)
    ours = GRIDS.create(made["grid"]).times(LinearFlow(), made["steps"], 0.0, 1.0)
    even = torch.linspace(0, 1, 250, dtype=torch.float64)
    theirs = 0.3 * even / (1 - 0.7 * even)
    torch.testing.assert_close(ours, 1 - theirs[:-1], rtol=1e-12, atol=1e-12)
    assert LinearFlow().log_snr(torch.tensor(0.875).double()) == pytest.approx(2 * math.log(0.125 / 0.875))


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
