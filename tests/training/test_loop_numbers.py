"""What the training loop counts, as numbers: reports, snapshots, spikes, sizes of routes, what Muon moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dinit.models.base import BACKBONES
from dinit.pipelines.launch import make_accelerator
from dinit.training import parse_recipe, randomness
from dinit.training import step as loop_module
from dinit.training.averaging.snapshots import list_snapshots
from dinit.training.optimizer import by_muon
from dinit.training.regularizers.routing import Routing
from dinit.training.run.divergence import SpikeDetector
from dinit.training.run.health import NoiseBins
from dinit.training.step import StepResult, TrainingLoop

RECIPE = """\
backbone: {name: dit, patch_size: 4, hidden_size: 8, depth: 1, num_heads: 1}
training: {steps: 4, batch_size: 8, gradient_accumulation: 2, log_every: 2, checkpoint_every: 9}
ema: {widths: [0.1], snapshot_every: 3}
tracker: null
"""


def test_a_report_is_of_the_steps_since_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(0).integers(0, 256, (24, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(24) % 3)
    recipe = parse_recipe(RECIPE, [f"data={{name: npz, path: {tmp_path / 'a.npz'}, layout: nchw}}"])
    steps: list[StepResult] = []
    binned: list[Tensor] = []

    class Watched(NoiseBins):
        def add(self, losses: Tensor, log_snr: Tensor) -> None:
            binned.append(log_snr)
            super().add(losses, log_snr)

    monkeypatch.setattr(loop_module, "NoiseBins", Watched)
    out = tmp_path / "run"
    out.mkdir()
    accelerator = make_accelerator(recipe, out)
    try:
        loop = TrainingLoop(recipe, out, accelerator, progress=False, on_step=lambda _, step: steps.append(step))
        loop.run()
        loop.close()
    finally:
        type(accelerator.state)._reset_state(reset_partial_state=True)
    # Each part's losses are told by the noise of its own rows.
    times = [loop.objective.times(8, randomness.time_generator(0, step)) for step in (1, 2, 3, 4)]
    expected = [loop.objective.process.log_snr(t)[rows] for t in times for rows in (slice(4), slice(4, 8))]
    assert all(torch.equal(found, wanted) for found, wanted in zip(binned, expected, strict=True))
    lines = [json.loads(line) for line in (out / "health.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    for line, pair in zip(lines, (steps[:2], steps[2:]), strict=True):
        assert line["loss"] == pytest.approx(sum(float(step.loss) for step in pair) / 2, rel=1e-6)
        assert line["gradient_norm"] == pytest.approx(sum(float(step.gradient_norm) for step in pair) / 2, rel=1e-6)
    assert loop.final_loss == pytest.approx(sum(float(step.loss) for step in steps) / 4, rel=1e-6)
    # Every third step and the last.
    assert sorted(snapshot.step for snapshot in list_snapshots(out / "ema")) == [3, 4]


def test_a_spike_is_8_deviations_above_the_mean() -> None:
    recent = [0.9, 1.1] * 25  # mean 1, deviation 0.1
    assert SpikeDetector().spikes(1, [*recent, 1.79]) == []
    assert SpikeDetector().spikes(1, [*recent, 1.81]) == [(51, 1.81)]
    assert SpikeDetector().spikes(1, [*recent[1:], 1.81]) == []  # of 49 nothing is said


@pytest.mark.parametrize(("ratio", "count", "kept"), [(0.6, 16, 6), (0.5, 16, 8), (0.25, 10, 8), (0.99, 16, 1)])
def test_the_share_of_tokens_that_pass_by_is_rounded(ratio: float, count: int, kept: int) -> None:
    backbone = BACKBONES["dit"].preset("tiny")
    route = Routing(ratio, 0, 1).route(backbone, seed=0, position=0)
    assert route.drawn(2, count).shape == (2, kept)


def test_muon_moves_what_mixes_more_than_4_channels() -> None:
    layers: dict[str, nn.Module] = {
        "from images": nn.Conv2d(4, 8, 3),
        "small": nn.Conv2d(5, 8, 3),
        "to images": nn.Conv2d(8, 4, 3),
        "depthwise": nn.Conv2d(8, 8, 3, groups=8),
        "linear": nn.Linear(2, 3),
        "table": nn.Embedding(9, 8),
        "norm": nn.LayerNorm(8),
    }
    network = nn.ModuleDict(layers)
    moved: Any = by_muon(network)
    assert [name for name, p in network.named_parameters() if any(p is one for one in moved)] == [
        "small.weight",
        "linear.weight",
    ]
