"""A training step on a device that is not the CPU: every part of the loss, every optimiser, nothing read back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from meta import META, ReadBackError, meta_device
from torch import nn

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.models.dit import DiT
from dinit.pipelines.launch import make_accelerator
from dinit.training import optimizer as optimizers
from dinit.training import parse_recipe
from dinit.training.averaging.ema import EMA
from dinit.training.averaging.power_ema import PowerEMA
from dinit.training.batches import batches
from dinit.training.discriminator import DiscriminatorRecipe
from dinit.training.losses.terms import LOSS_TERMS
from dinit.training.losses.times import TIME_SAMPLERS
from dinit.training.losses.weighting import WEIGHTINGS
from dinit.training.network import TrainingNetwork
from dinit.training.objective import Objective
from dinit.training.optimizer import make_optimizer, step_if_finite
from dinit.training.recipe.model import OptimizerSection
from dinit.training.step import StepResult, TrainingLoop

RECIPE = """
data: digits
backbone: {name: dit, preset: tiny}
tracker: null
training: {steps: 3, batch_size: 4, gradient_accumulation: 2, log_every: 3, checkpoint_every: 9, workers: 0}
"""


@pytest.fixture(autouse=True)
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """AdamW on `meta` in the fused form that it has on a GPU; torch has its kernel there and does not list it."""
    devices = ["cpu", "cuda", "meta"]
    monkeypatch.setattr(optimizers, "FUSED", devices)
    module = sys.modules[torch.optim.Optimizer.__module__]  # torch.optim hides it
    monkeypatch.setattr(module, "_get_fused_kernels_supported_devices", lambda: devices)


@contextmanager
def loop_on_device(settings: list[str], out: Path, *, scaler: bool = False) -> Iterator[TrainingLoop]:
    """A run whose network, optimiser and averages are on the device; its data is read on the CPU."""
    recipe = parse_recipe(RECIPE, settings)
    accelerator = make_accelerator(recipe, out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Accelerator, "device", META)
        if scaler:  # as with precision fp16 on a GPU
            accelerator.scaler, accelerator.native_amp = torch.amp.GradScaler("meta"), True
            patch.setattr(Accelerator, "mixed_precision", "fp16")
        try:
            with meta_device():
                yield TrainingLoop(recipe, out, accelerator, progress=False)
        finally:
            type(accelerator.state)._reset_state(reset_partial_state=True)


def steps(loop: TrainingLoop, count: int = 2) -> list[StepResult]:
    """Steps that may neither read back nor wait."""
    source = batches(loop.data, 0, loop.train_step.share, 1, count, workers=0)
    with meta_device(refuse_waits=True) as watch:
        results = [loop.train_step(step, source) for step in range(1, count + 1)]
    assert watch.read_backs == watch.waits == []
    assert watch.operations > 0
    return results


SETTINGS = {
    "adamw": ["ema.widths=[0.1, 0.2]"],
    "lion": ["optimizer={kind: lion, lr: 1.e-4}"],
    "muon": ["optimizer={kind: muon, weight_decay: 0.1}", "backbone.name=dic"],
    "switches": [
        "condition_noise={}",
        "routing={start: 0, end: 2}",
        "alignment={encoder: digits-classifier, block: 1, hidden: 16}",
    ],
    "routing-rows": ["backbone.name=lit", "routing={start: 0, end: 2}"],
    "variance": ["backbone.learn_sigma=true"],
    "checkpointing": ["training.gradient_checkpointing=true", "training.clip_norm=null"],
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_waits_for_nothing(name: str, tmp_path: Path) -> None:
    """Two accumulated parts, clipping, the optimiser and the averages: no read-back, no upload that waits."""
    with loop_on_device(SETTINGS[name], tmp_path) as loop:
        for result in steps(loop):
            assert {value.device for value in vars(result).values()} == {META}
        assert {p.device for p in loop.state.ema.network.parameters()} == {META}


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_a_step_with_a_loss_scaler_waits_for_nothing(kind: str, tmp_path: Path) -> None:
    """The scaler unscales, leaves out steps and changes its scale on the device."""
    with loop_on_device(
        [f"optimizer.kind={kind}", "training.gradient_accumulation=1"], tmp_path, scaler=True
    ) as loop:
        steps(loop)
        scaler: Any = loop.accelerator.scaler
        assert scaler._get_scale_async().device == META, "where the loss was scaled; get_scale() reads it back"


def test_a_run_reads_back_at_the_log_interval_alone(tmp_path: Path) -> None:
    """Once, where all losses and norms since the last report are read together."""
    with loop_on_device([], tmp_path) as loop, meta_device() as watch, pytest.raises(ReadBackError):
        loop.run()
    assert (loop.step, watch.read_backs) == (3, ["tolist"])


NETWORK: Any = DiT.preset("tiny", image_size=8, in_channels=1).to(META)
PARTS = [
    *((name, "v", "uniform", "uniform", ()) for name in PROCESSES),
    *(("edm" if name == "edm" else "vp", name, "uniform", "uniform", ()) for name in PARAMETERIZATIONS),
    *(("vp", "v", name, "uniform", ()) for name in WEIGHTINGS),
    *(("vp", "v", "uniform", name, ()) for name in TIME_SAMPLERS),
    *(("vp", "v", "uniform", "uniform", (name,)) for name in LOSS_TERMS),
]


def test_every_part_of_the_loss() -> None:
    """Each process, parameterization, weighting, distribution of times and further term."""
    for process, output, weighting, times, terms in PARTS:
        objective = Objective(
            PROCESSES.create(process),
            PARAMETERIZATIONS.create(output),
            WEIGHTINGS.create(weighting),
            TIME_SAMPLERS.create(times),
            0.99,
            tuple(LOSS_TERMS.create(name) for name in terms),
        )
        t = objective.times(3, torch.Generator().manual_seed(0))
        x0, labels = torch.empty(3, 1, 8, 8, device=META), torch.zeros(3, dtype=torch.int64, device=META)
        with meta_device(refuse_waits=True):
            found = objective.losses(TrainingNetwork(NETWORK), x0, labels, t, torch.empty_like(x0))
            assert (found.shape, found.device) == ((3,), META)
            found.mean().backward()


@pytest.mark.parametrize("kind", ["adamw", "lion", "muon"])
def test_optimizers_leave_out_a_step_without_a_wait(kind: str) -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Linear(8, 8)).to(META)
    optimizer = make_optimizer(model, OptimizerSection(kind=kind, weight_decay=0.1))  # type: ignore[arg-type]
    with meta_device(refuse_waits=True):
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        step_if_finite(optimizer, torch.empty((), device=META).isfinite())


def test_averages() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).to(META)
    with meta_device(refuse_waits=True):
        ema, power = EMA(model), PowerEMA(model, 0.1)
        for step in (1, 2):
            ema.update(step)
            power.update(step)
        ema.load(ema.state())
        assert {value.device for value in power.gathered().averages.values()} == {META}


def test_discriminator() -> None:
    images, labels = torch.empty(5, 1, 8, 8, device=META), torch.zeros(5, dtype=torch.int64, device=META)
    with meta_device() as watch:
        DiscriminatorRecipe(steps=2, batch_size=3, width=8).train(
            PROCESSES.create("vp"), (images, labels), (images, labels), 3
        )
    assert watch.read_backs == []
    assert all("copy" in what for what in watch.waits), "the network is moved, once"
