"""What a run does when something breaks, and what a step costs the device."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import signal
import threading
import time
import warnings
from pathlib import Path

import pytest
import ranks
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from dinit.pipelines.train import train
from dinit.training import Recipe, parse_recipe
from dinit.training.run.checkpoint import CheckpointError, list_checkpoints, load_checkpoint
from dinit.training.run.divergence import TrainingDiverged
from dinit.training.run.log import read_losses
from dinit.training.run.stopping import TrainingStopped
from dinit.training.step import StepResult, TrainingLoop, TrainingStep

RECIPE = """\
name: tiny
data: digits
backbone: {name: dit, patch_size: 4, hidden_size: 16, depth: 1, num_heads: 2}
optimizer: {lr: 3e-3}
schedule: {kind: cosine, warmup_steps: 2}
ema: {decay: 0.9}
training: {steps: 8, batch_size: 8, checkpoint_every: 4, log_every: 2}
sampling: {steps: 2}
tracker: null
"""
BY_WORKERS = "data={name: glyphs, count: 25000}"  # too large for memory: read by a process of its own


def tiny(*overrides: str) -> Recipe:
    return parse_recipe(RECIPE, overrides)


def losses(folder: Path) -> list[tuple[int, float]]:
    path = folder / "losses.jsonl"
    return read_losses(path) if path.exists() else []


def same_end(folder: Path, other: Path) -> None:
    """Equal losses, and equal tensors in the last checkpoints, bit for bit."""
    assert losses(folder) == losses(other)
    paths = [list_checkpoints(run / "checkpoints")[-1] for run in (folder, other)]
    for name in ("raw", "ema", "optimizer", "random"):
        ours, theirs = (load_file(path / f"{name}.safetensors") for path in paths)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name


class _Reads(TorchDispatchMode):
    """Counts what takes a number from a tensor to the host: item(), bool(), float(), tolist()."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("kind", ["adamw", "lion"])
def test_no_step_reads_a_number_from_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    honest, reads = TrainingStep.__call__, []

    def counted(self, step, source):
        with _Reads() as mode:
            result = honest(self, step, source)
        reads.append(mode.count)
        return result

    monkeypatch.setattr(TrainingStep, "__call__", counted)
    train(tiny(f"optimizer.kind={kind}"), tmp_path / "run", progress=False)
    assert reads[1:] == [0] * 7  # the first makes tables on the host
    with _Reads() as mode:
        bool(torch.ones(()).isfinite())
    assert mode.count == 1  # so they would have been seen


def test_sampling_changes_neither_weights_nor_losses(tmp_path: Path) -> None:
    for name, every in (("with", 2), ("without", 0)):
        train(tiny(f"training.sample_every={every}"), tmp_path / name, progress=False)
    same_end(tmp_path / "with", tmp_path / "without")


def test_the_signal_saves_ends_and_the_run_goes_on(tmp_path: Path) -> None:
    def stop(loop: TrainingLoop, result: StepResult) -> None:
        if loop.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    train(tiny(), tmp_path / "calm", progress=False)
    with pytest.raises(TrainingStopped, match="SIGTERM after step 3, which is saved"):
        train(tiny(), tmp_path / "run", progress=False, on_step=stop)
    assert signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000003"]
    assert [step for step, _ in losses(tmp_path / "run")] == [1, 2, 3]
    train(tiny(), tmp_path / "run", progress=False)
    same_end(tmp_path / "run", tmp_path / "calm")


def test_on_step_gets_every_step_and_its_loss(tmp_path: Path) -> None:
    steps, given = [], []

    def keep(loop: TrainingLoop, result: StepResult) -> None:
        steps.append(loop.step)
        given.append(float(result.loss))

    train(tiny(), tmp_path / "run", progress=False, on_step=keep)
    assert steps == list(range(1, 9))
    assert given == pytest.approx([loss for _, loss in losses(tmp_path / "run")])


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path) -> None:
    def spoil(loop: TrainingLoop, result: StepResult) -> None:
        if loop.step == 7:
            with torch.no_grad():
                loop.state.parameters[0][0] = math.inf

    with pytest.raises(TrainingDiverged, match=r"not finite after step 8.*last checkpoint is of step 4"):
        train(tiny("training.keep=1"), tmp_path / "run", progress=False, on_step=spoil)
    (kept,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    assert load_checkpoint(kept).step == 4


def test_a_run_is_not_begun_anew_over_damaged_checkpoints(tmp_path: Path) -> None:
    train(tiny("training.keep=1"), tmp_path / "run", progress=False)
    (tmp_path / "run" / "pipeline" / "training.json").unlink()
    (path,) = list_checkpoints(tmp_path / "run" / "checkpoints")
    (path / "ema.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match="remove them to start again"):
        train(tiny("training.keep=1"), tmp_path / "run", progress=False)


def test_a_checkpoint_of_another_network_says_which_version_wrote_it(tmp_path: Path) -> None:
    train(tiny(), tmp_path / "run", progress=False)
    (tmp_path / "run" / "pipeline" / "training.json").unlink()
    for path in list_checkpoints(tmp_path / "run" / "checkpoints"):
        state = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps({**state, "dinit": "0.0.7"}))
        tensors = load_file(path / "raw.safetensors")
        tensors.pop(sorted(tensors)[0])
        torch_save(path / "raw.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"written by dinit 0\.0\.7, does not fit"):
        train(tiny(), tmp_path / "run", progress=False)


def torch_save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def test_a_disk_that_is_full_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    """The limit on a file's size stands in for it: the kernel refuses to write on in the same way."""
    folder = tmp_path / "run"
    train(tiny("training.keep=1"), tmp_path / "calm", progress=False)
    sizes = [file.stat().st_size for file in list_checkpoints(tmp_path / "calm" / "checkpoints")[-1].iterdir()]
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(sizes) - 100, unlimited[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written|too large"):
            train(tiny("training.keep=1"), folder, progress=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list((folder / "checkpoints").iterdir()) == []  # no half of one under any name
    assert len(losses(folder)) == 4
    train(tiny("training.keep=1"), folder, progress=False)
    same_end(folder, tmp_path / "calm")


def _children() -> list[int]:
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


@pytest.mark.slow
def test_a_worker_that_dies_is_started_again(tmp_path: Path) -> None:
    recipe = tiny(BY_WORKERS, "training.workers=1", "training.steps=60", "training.log_every=2")
    train(recipe, tmp_path / "calm", progress=False)
    before, killed = set(_children()), []

    def strike() -> None:
        ranks.wait_for(lambda: len(losses(tmp_path / "run")) >= 5)
        killed.extend(set(_children()) - before)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=strike)
    thread.start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(recipe, tmp_path / "run", progress=False)
    thread.join(60)
    assert len(killed) == 1
    assert any("started again" in str(warning.message) for warning in caught)
    same_end(tmp_path / "run", tmp_path / "calm")


def _train_many(folder: str) -> None:
    train(tiny("training.steps=120", "training.log_every=1", "training.checkpoint_every=5"), folder, progress=False)


@pytest.mark.slow
def test_five_faults_in_two_processes(tmp_path: Path) -> None:
    """All killed, one killed, told to end, by chance: losses and last checkpoint are the uninterrupted ones."""
    folder, chance = tmp_path / "run", random.Random(3)
    ranks.join(ranks.start(2, _train_many, str(tmp_path / "calm")))
    for fault in ("all", "one", "told", "all", "one"):
        children = ranks.start(2, _train_many, str(folder))
        target = len(losses(folder)) + chance.randint(1, 12)
        ranks.wait_for(lambda target=target: len(losses(folder)) >= target, children)
        time.sleep(chance.uniform(0, 0.05))
        if fault == "told":
            os.kill(children[chance.randint(0, 1)].pid or 0, signal.SIGTERM)
            ranks.join(children, 60)
        elif fault == "one":
            os.kill(children[chance.randint(0, 1)].pid or 0, signal.SIGKILL)
            time.sleep(chance.uniform(0, 0.2))
        ranks.kill(children)
        for path in list_checkpoints(folder / "checkpoints"):
            load_checkpoint(path)
    children = ranks.start(2, _train_many, str(folder))
    ranks.join(children)
    assert [child.exitcode for child in children] == [0, 0]
    same_end(folder, tmp_path / "calm")
    assert len(losses(folder)) == 120
    assert not [path for path in folder.rglob("*") if path.name.startswith(".dinit-")]
