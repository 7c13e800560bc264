"""Edges of a pipeline: what a call leaves behind, whose choice wins, and what is written of the codec."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler

from dinit.checkpoints.exporting import scheduler_arguments
from dinit.checkpoints.interop.schedule import read_scheduler
from dinit.checkpoints.interop.scheduler_sampler import SchedulerGrid
from dinit.checkpoints.interop.training_scheduler import training_scheduler
from dinit.diffusion import PARAMETERIZATIONS
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.diffusion.discrete import VPBetas, VPDiscrete
from dinit.models.base import BACKBONES
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.outputs.manifest import provenance
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.grids.times import Times
from dinit.samplers.grids.uniform import Uniform

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from test_codec import tiny_vae  # pyright: ignore[reportMissingImports]

PLAIN: dict[str, Any] = {"process": {"name": "vp-discrete"}, "parameterization": {"name": "v"}}
DEFAULTS = {"sampler": {"name": "ddim", "eta": 1.0}, "steps": 2}


def make(defaults: dict[str, Any] | None = None, backbone: str = "dit", **options: Any) -> Pipeline:
    torch.manual_seed(0)
    network = BACKBONES[backbone].preset("tiny", **options)
    pipe = Pipeline(network, **PLAIN, defaults=DEFAULTS if defaults is None else defaults)
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- what is left behind -----------------------------------------------------------------------------------------


def stopped(pipe: Pipeline, tmp_path: Path) -> None:
    def stop(step: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(1, callback_on_step_end=stop)


def refused(pipe: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="out of range"):
        pipe(99)


WAYS = {
    "images": lambda pipe, _: pipe([1, None]),
    "latents": lambda pipe, _: pipe(1, output_type="latent"),
    "guided": lambda pipe, _: pipe(1, guidance=[2.0, {"name": "cads"}]),
    "stopped": stopped,
    "refused": refused,
    "prepared": lambda pipe, _: pipe.check(pipe.prepare(1, num_images=2)),
    "saved": lambda pipe, tmp_path: pipe.save_pretrained(tmp_path / "saved"),
    "scheduler": lambda pipe, _: pipe.scheduler,
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_a_call_leaves_everything_as_it_was(way: str, training: bool, tmp_path: Path) -> None:
    pipe = make(dropout=0.5)
    pipe.backbone.train(training)

    def state() -> dict[str, Any]:
        return {
            "training": [module.training for module in pipe.backbone.modules()],
            "weights": {name: value.clone() for name, value in pipe.backbone.state_dict().items()},
            "trained": [(p.requires_grad, p.grad) for p in pipe.backbone.parameters()],
            "gradients": torch.is_grad_enabled(),
            # The generators that a caller may rely on. NPY002 is for who draws from them.
            "random": (torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()),  # noqa: NPY002
            "defaults": str(pipe.defaults),
            "config": {key: value for key, value in dict(pipe.config).items() if key[0] != "_"},
        }

    before = state()
    WAYS[way](pipe, tmp_path)
    after = state()
    assert before["weights"].keys() == after["weights"].keys()
    assert all(torch.equal(after["weights"][name], value) for name, value in before["weights"].items())
    for kind in before.keys() - {"weights"}:
        assert before[kind] == after[kind], kind


# --- whose choice wins -------------------------------------------------------------------------------------------

THREE = torch.tensor([1.0, 0.5, 0.1], dtype=torch.float64)
HELD = {"name": "times", "values": [1.0, 0.6, 0.4, 0.2]}
OWN = EulerDiscreteScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="v_prediction")
KARRAS, ALL = {"grid": "karras"}, {"grid": "karras", "steps": 7}


@pytest.mark.parametrize(
    ("defaults", "given", "grid", "steps"),
    [
        ({"steps": 7}, {}, Uniform, 7),
        (ALL, {}, Karras, 7),
        (ALL, {"steps": 5}, Karras, 5),
        (ALL, {"grid": "log-snr"}, LogSNR, 7),
        (ALL, {"grid": THREE}, Times, 3),
        (ALL, {"grid": "respaced:sections=ddim25"}, None, 25),
        (ALL, {"grid": THREE, "steps": 3}, Times, 3),
        (ALL, {"sampler": "edm-heun"}, Karras, 7),
        ({"steps": 7}, {"sampler": "edm-heun"}, LogSNR, 7),
        (ALL, {"sampler": OWN}, SchedulerGrid, 7),
        ({"steps": 7}, {"sampler": OWN}, SchedulerGrid, 7),
        ({"steps": 7, "grid": HELD}, {}, Times, 4),
        ({"steps": 7, "grid": HELD}, {"grid": "karras"}, Karras, 7),
        ({"grid": HELD}, {}, Times, 4),
        (KARRAS, {"steps": 2}, Karras, 2),
    ],
)
def test_a_call_wins_over_its_grid_over_the_defaults(
    defaults: dict[str, Any], given: dict[str, Any], grid: type | None, steps: int
) -> None:
    call = make({"sampler": "ddim", **defaults}).prepare(1, **given)
    assert call.steps == steps
    assert grid is None or type(call.grid) is grid


# --- what is written of the codec --------------------------------------------------------------------------------

MEANS, STDS = [0.1, -0.2, 0.3, 0.4], [0.5, 1.5, 0.7, 2.0]


def latent(**config: Any) -> Pipeline:
    vae: Any = tiny_vae()
    vae.register_to_config(**config)
    return Pipeline(BACKBONES["dit"].preset("tiny", in_channels=4, image_size=4), **PLAIN, vae=vae)


@pytest.mark.parametrize(
    ("config", "recorded"),
    [
        ({}, {"scaling_factor": 0.18215, "shift_factor": 0.25}),
        ({"scaling_factor": 0.3}, {"scaling_factor": 0.3, "shift_factor": 0.25}),
        ({"shift_factor": 0.5}, {"scaling_factor": 0.18215, "shift_factor": 0.5}),
        ({"shift_factor": None}, {"scaling_factor": 0.18215, "shift_factor": 0.0}),
        (
            {"shift_factor": None, "latents_mean": MEANS, "latents_std": STDS},
            {"scaling_factor": 0.18215, "shift_factor": 0.0, "latents_mean": MEANS, "latents_std": STDS},
        ),
    ],
)
def test_a_record_has_every_number_that_decides_what_is_decoded(config: Any, recorded: dict[str, Any]) -> None:
    assert provenance(latent(**config))["codec"] == {"name": "autoencoder-kl", **recorded}


# --- what a scheduler of diffusers is given -----------------------------------------------------------------------

CHAINS = [
    VPDiscrete(),
    VPDiscrete("scaled-linear", beta_end=0.02),
    VPDiscrete("squared-cosine", num_steps=50),
    VPDiscrete("linear", zero_terminal_snr=True),
]


@pytest.mark.parametrize("name", ["epsilon", "x0", "v"])
@pytest.mark.parametrize("process", CHAINS, ids=repr)
def test_an_exported_scheduler_clips_nothing_and_reads_back(process: VPDiscrete, name: str) -> None:
    diffusers: Any = pytest.importorskip("diffusers")
    parameterization = PARAMETERIZATIONS.create(name)
    settings = scheduler_arguments(process, parameterization)
    for kind in (diffusers.DDIMScheduler, diffusers.DDPMScheduler):
        made = kind(**settings)
        theirs, prediction = read_scheduler(made)
        assert (theirs.num_steps, type(prediction)) == (process.num_steps, type(parameterization))
        t = torch.tensor([0.02, 0.5, 0.98], dtype=torch.float64)
        torch.testing.assert_close(theirs.log_snr(t), process.log_snr(t))
        made.set_timesteps(2)
        far = made.step(
            torch.zeros(1, 1, 2, 2), made.timesteps[-1], torch.full((1, 1, 2, 2), 9.0)
        ).pred_original_sample
        assert name == "x0" or float(far.abs().min()) > 1  # latents and means are not held to [-1, 1]


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("kind", [VPDiscrete, VPBetas])
def test_a_pipelines_scheduler_has_the_variance_and_the_end_of_its_training(
    kind: Any, zero: bool, learns: bool
) -> None:
    made = training_scheduler(kind(zero_terminal_snr=zero), PARAMETERIZATIONS.create("v"), learns)
    config = made.config
    assert config["variance_type"] == ("learned_range" if learns else "fixed_small")
    assert config["timestep_spacing"] == ("trailing" if zero else "leading")
    assert config["rescale_betas_zero_snr"] is zero
    assert config["clip_sample"] is False


def test_other_processes_give_their_numbers_to_a_scheduler() -> None:
    edm = training_scheduler(EDM(0.01, 60.0), PARAMETERIZATIONS.create("edm", sigma_data=0.7)).config
    assert (edm["sigma_min"], edm["sigma_max"], edm["sigma_data"]) == (0.01, 60.0, 0.7)
    assert training_scheduler(LinearFlow(3.0), PARAMETERIZATIONS.create("difference")).config["shift"] == 3.0
