"""A run that goes on: what its checkpoint remembers, and which steps its hooks have seen already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinit.pipelines.launch import make_accelerator
from dinit.training import parse_recipe
from dinit.training import step as loop_module
from dinit.training.run.checkpoint import list_checkpoints
from dinit.training.run.divergence import SpikeDetector
from dinit.training.run.progress import Display
from dinit.training.step import TrainingLoop, TrainingStep

RECIPE = """\
backbone: {name: dit, patch_size: 4, hidden_size: 8, depth: 1, num_heads: 1}
training: {steps: 2, batch_size: 4, log_every: 1, checkpoint_every: 2, sample_every: 2, keep: 9}
evaluation: {every: 3, num_samples: 8}
tracker: null
"""


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """Trains to a number of steps in one folder: (the loop, steps of previews, steps of evaluations)."""
    images = np.random.default_rng(0).integers(0, 256, (12, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(12) % 3)

    def go(steps: int, more: Sequence[str] = (), **hooks: Any) -> tuple[TrainingLoop, list[int], list[int]]:
        data = f"data={{name: npz, path: {tmp_path / 'a.npz'}, layout: nchw}}"
        recipe = parse_recipe(RECIPE, [data, f"training.steps={steps}", *more])
        out, seen, measured = tmp_path / "run", [], []
        out.mkdir(exist_ok=True)
        accelerator = make_accelerator(recipe, out)
        try:
            loop = TrainingLoop(
                recipe,
                out,
                accelerator,
                progress=False,
                preview=lambda loop, network: seen.append(loop.step),
                evaluate=lambda loop, network: measured.append(loop.step),
                **hooks,
            )
            loop.run()
            loop.close()
        finally:
            type(accelerator.state)._reset_state(reset_partial_state=True)
        return loop, seen, measured

    return go


def test_hooks_see_every_step_once_however_often_a_run_goes_on(run: Any) -> None:
    assert run(2)[1:] == ([0, 2], [2])
    assert run(3)[1:] == ([3], [3])
    assert run(5)[1:] == ([4, 5], [5])
    assert run(5)[1:] == ([], [])


def test_a_checkpoint_remembers_what_was_counted(run: Any, tmp_path: Path) -> None:
    run(2)
    place = list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "state.json"
    state = json.loads(place.read_text())
    assert (state["extra"]["skipped"], state["extra"]["skipped_in_a_row"]) == (0, 0)
    state["extra"] |= {"skipped": 7, "skipped_in_a_row": 3, "seconds": 500.0}
    place.write_text(json.dumps(state))
    loop = run(2)[0]  # no step is left
    assert (loop.step, loop.saved, loop.skips.total, loop.skips.consecutive) == (2, 2, 7, 3)
    assert 500 <= loop.seconds < 700
    seen: list[tuple[int, int]] = []
    run(4, on_step=lambda loop, _: seen.append((loop.skips.total, loop.skips.consecutive)))
    assert seen == [(7, 3), (7, 0)]  # the first step had a number for its loss
    kept = json.loads((list_checkpoints(tmp_path / "run" / "checkpoints")[-1] / "state.json").read_text())["extra"]
    assert (kept["skipped"], kept["skipped_in_a_row"]) == (7, 0)
    assert kept["seconds"] >= 500


def test_spikes_and_skips_are_of_their_own_steps_and_images(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports are of two steps here, and say which of them it was."""
    said: list[str] = []
    monkeypatch.setattr(Display, "warn", lambda self, message: said.append(message))
    monkeypatch.setattr(loop_module, "SpikeDetector", lambda: SpikeDetector([1e-9] * 50))
    step_of = TrainingStep.__call__

    def without_a_number(self: TrainingStep, step: int, source: Any) -> Any:
        result = step_of(self, step, source)
        lost = {"loss": torch.tensor(float("nan")), "finite": torch.tensor(False)}
        return replace(result, **lost) if step == 3 else result

    monkeypatch.setattr(TrainingStep, "__call__", without_a_number)
    loop = run(4, more=["seed=7", "training.log_every=2", "tracker=null"])[0]
    assert [message.split(" is ")[0] for message in said] == [f"the loss of step {step}" for step in (1, 2, 4)]
    (skipped,) = [json.loads(line) for line in (loop.out / "skipped.jsonl").read_text().splitlines()]
    assert skipped == {"step": 3, "loss": "nan", "indices": loop.data.indices(7, 8, 4)}
    assert (loop.skips.total, loop.skips.consecutive) == (1, 0)
