"""Runs of several processes: the losses of one, whole checkpoints, and an end that all agree on."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
import weakref
from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from dinit.pipelines import launch
from dinit.pipelines.train import train
from dinit.training import parse_recipe
from dinit.training.optimizer import learning_rate
from dinit.training.run.checkpoint import list_checkpoints
from dinit.training.run.log import read_losses
from dinit.training.run.stopping import TrainingStopped
from dinit.training.step import StepResult, TrainingLoop

RECIPE = """\
name: tiny
data: digits
backbone: {name: dit, patch_size: 4, hidden_size: 16, depth: 2, num_heads: 2}
optimizer: {lr: 3e-3}
schedule: {kind: cosine, warmup_steps: 5}
ema: {decay: 0.9, widths: [0.1], snapshot_every: 25}
training: {steps: 50, batch_size: 16, gradient_accumulation: 2, checkpoint_every: 10, log_every: 1, keep: 9}
sampling: {steps: 2}
tracker: null
"""


def _train(folder: str, *overrides: str) -> None:
    train(parse_recipe(RECIPE, overrides), folder, progress=False)


def finish(processes: int, folder: Path, *overrides: str) -> Path:
    children = ranks.start(processes, _train, str(folder), *overrides)
    ranks.join(children)
    assert [child.exitcode for child in children] == [0] * processes
    return folder


def losses(folder: Path) -> list[float]:
    return [loss for _, loss in read_losses(folder / "losses.jsonl")]


def reached(folder: Path, step: int) -> bool:
    return (folder / "losses.jsonl").exists() and len(losses(folder)) >= step


def checkpoint(folder: Path, step: int) -> dict[str, dict[str, torch.Tensor]]:
    (path,) = [path for path in list_checkpoints(folder / "checkpoints") if path.name == f"step-{step:08d}"]
    names = ("raw", "ema", "optimizer", "powers")
    return {name: load_file(path / f"{name}.safetensors") for name in names}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish(1, tmp_path_factory.mktemp("one") / "run")


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["none", "fsdp2"])
def test_two_processes_have_the_losses_and_checkpoints_of_one(alone: Path, tmp_path: Path, sharding: str) -> None:
    """At the same global batch, with accumulated parts, over 50 steps."""
    folder = finish(2, tmp_path / "two", f"training.sharding={sharding}")
    assert json.loads((folder / "pipeline" / "training.json").read_text())["processes"] == 2
    ours, theirs = torch.tensor(losses(folder)), torch.tensor(losses(alone))
    assert len(ours) == 50
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=0)
    for name, tensors in checkpoint(alone, 10).items():
        found = checkpoint(folder, 10)[name]
        assert found.keys() == tensors.keys(), name
        for key, tensor in tensors.items():
            torch.testing.assert_close(
                found[key], tensor, rtol=1e-3, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}"
            )
    # The learning rate is that of the optimiser step, whatever the number of processes and accumulated parts.
    recipe = parse_recipe(RECIPE)
    for run in (alone, folder):
        lines = [json.loads(line) for line in (run / "health.jsonl").read_text().splitlines()]
        expected = [learning_rate(k, 50, 3e-3, recipe.schedule) for k in range(1, 51)]
        assert [line["lr"] for line in lines] == expected


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(alone: Path, tmp_path: Path) -> None:
    """Begun by two with spread weights and killed, carried on by one, killed, and ended by two."""
    folder = tmp_path / "run"
    for processes, sharding, until in ((2, "fsdp2", 12), (1, "fsdp2", 31)):
        children = ranks.start(processes, _train, str(folder), f"training.sharding={sharding}")
        ranks.wait_for(lambda until=until: reached(folder, until), children)
        ranks.kill(children)
    finish(2, folder, "training.sharding=fsdp2")
    torch.testing.assert_close(torch.tensor(losses(folder)), torch.tensor(losses(alone)), rtol=1e-4, atol=0)


def _train_told(folder: str, codes: str) -> None:
    try:
        _train(folder)
    except TrainingStopped as stopped:
        Path(f"{codes}-{os.environ['RANK']}").write_text(f"{stopped.number} {stopped.step}")


@pytest.mark.slow
def test_all_processes_end_after_the_same_step_when_one_is_told(alone: Path, tmp_path: Path) -> None:
    folder, codes = tmp_path / "run", tmp_path / "code"
    children = ranks.start(2, _train_told, str(folder), str(codes))
    ranks.wait_for(lambda: reached(folder, 13), children)
    os.kill(children[1].pid or 0, signal.SIGTERM)  # not the one that writes
    ranks.join(children)
    said = {(tmp_path / f"code-{rank}").read_text() for rank in (0, 1)}
    assert len(said) == 1
    number, step = map(int, said.pop().split())
    assert number == signal.SIGTERM
    assert 13 <= step < 50
    assert list_checkpoints(folder / "checkpoints")[-1].name == f"step-{step:08d}"
    assert len(losses(folder)) == step
    finish(2, folder)
    torch.testing.assert_close(torch.tensor(losses(folder)), torch.tensor(losses(alone)), rtol=1e-4, atol=0)


WAYS_OUT = {
    "finished": "",
    "stopped": "TrainingStopped",
    "interrupted": "KeyboardInterrupt",
    "diverged": "TrainingDiverged",
    "failed": "OSError",
    "refused": "ValueError",
}


def _leave(folder: str, way: str, sharding: str, report: str) -> None:
    """Trains and leaves in one way; writes what was alive when the process groups were destroyed, and after."""
    alive: list[bool] = []
    models: list[weakref.ref[Any]] = []
    groups: list[weakref.ref[Any]] = []
    held: list[TrainingLoop] = []  # as a hook of the caller may do
    made, destroy = DistributedDataParallel.__init__, torch.distributed.destroy_process_group

    def remember(self: Any, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        models.append(weakref.ref(self))

    def destroying(*arguments: Any) -> None:
        alive.extend(model() is not None for model in models)
        groups.append(weakref.ref(torch.distributed.group.WORLD))
        destroy(*arguments)

    def deep(*_: Any) -> None:  # called by the model, which the traceback then holds
        raise KeyboardInterrupt if way == "interrupted" else OSError("the disk is full")

    def leave(loop: TrainingLoop, result: StepResult) -> None:
        if way == "finished":
            held.append(loop)
        if loop.step == 4 and way == "stopped":
            os.kill(os.getpid(), signal.SIGTERM)
        if loop.step == 4 and way in ("interrupted", "failed"):
            loop.state.backbone.register_forward_hook(deep)

    DistributedDataParallel.__init__ = remember
    torch.distributed.destroy_process_group = destroying
    overrides = ["optimizer.lr=1e30", "training.max_skipped=1"] if way == "diverged" else []
    overrides += ["training.batch_size=18"] if way == "refused" else []
    overrides += [f"training.sharding={sharding}", "training.steps=7", "training.checkpoint_every=6"]
    ended = ""
    try:
        train(parse_recipe(RECIPE, overrides), folder, progress=False, on_step=leave)
    except (Exception, KeyboardInterrupt) as error:
        ended = type(error).__name__
    after = [group() is not None for group in groups]
    Path(f"{report}-{os.environ['RANK']}").write_text(json.dumps([ended, alive, after]))


@pytest.mark.slow
@pytest.mark.parametrize(("way", "sharding"), [*((way, "none") for way in WAYS_OUT), ("failed", "fsdp2")])
def test_the_model_is_released_before_the_process_groups(tmp_path: Path, way: str, sharding: str) -> None:
    """A Reducer that outlives its group deadlocks when it is deallocated: see training_processes."""
    children = ranks.start(2, _leave, str(tmp_path / "run"), way, sharding, str(tmp_path / "report"))
    ranks.join(children, 100)
    for rank in (0, 1):
        ended, alive, after = json.loads((tmp_path / f"report-{rank}").read_text())
        assert ended == WAYS_OUT[way]
        assert alive == ([] if sharding == "fsdp2" or way == "refused" else [False])
        # torch itself keeps a group that weights are spread over until the process ends.
        assert after == [sharding == "fsdp2"], "a process group is left"


def _die(folder: str, way: str, report: str) -> None:
    """Trains; the second process dies at step 4, and the first writes what it then says."""

    def die(loop: TrainingLoop, result: StepResult) -> None:
        if loop.step == 4 and not loop.main:
            os._exit(3)

    try:
        train(parse_recipe(RECIPE), folder, progress=False, on_step=die)
    except OSError as error:
        Path(report).write_text(f"{type(error).__name__}: {error}")


@pytest.mark.slow
def test_a_process_whose_partner_died_says_so_and_ends(tmp_path: Path) -> None:
    children = ranks.start(2, _die, str(tmp_path / "run"), "", str(tmp_path / "report"))
    ranks.join(children, 60)
    said = (tmp_path / "report").read_text()
    assert said.startswith("ConnectionError: process 0 of 2 waited for another one")
    assert "start the same command again" in said


def _wait_in_vain(report: str) -> None:
    """The first process leaves with an error while the second never takes part in what the first has begun."""
    launch._LEAVE = 1.0
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with launch.launched_processes(cpu=True) as state:
                state.wait_for_everyone()
                began = time.monotonic()
                if state.is_main_process:
                    torch.distributed.all_reduce(torch.ones(3), async_op=True)
                    raise ValueError("of the first process")
                ranks.wait_for(Path(report).exists)
        except ValueError:
            said = [str(warning.message) for warning in caught if "do not answer" in str(warning.message)]
            Path(report).write_text(json.dumps([time.monotonic() - began, said, bool(PartialState._shared_state)]))


@pytest.mark.slow
def test_leaving_does_not_wait_for_a_partner_that_does_not_answer(tmp_path: Path) -> None:
    """gloo's destructor waits for what is on its way, for as long as the group's limit of hours."""
    ranks.join(ranks.start(2, _wait_in_vain, str(tmp_path / "report")), 60)
    seconds, said, joined = json.loads((tmp_path / "report").read_text())
    assert 1.0 <= seconds < 20
    assert len(said) == 1
    assert not joined


XL = (
    "backbone={name: dit, patch_size: 4, hidden_size: 1152, depth: 2, num_heads: 16}",
    "training={batch_size: 4, checkpoint_every: 2, log_every: 1, keep: 1, sharding: fsdp2}",
    "ema={decay: 0.9}",
    "schedule={kind: constant, warmup_steps: 0}",
)


def _train_on(folder: str, steps: int, *overrides: str) -> None:
    train(parse_recipe(RECIPE, overrides), folder, progress=False, extend=steps)


@pytest.mark.slow
def test_layers_of_the_size_of_dit_xl_are_sharded_saved_resumed_and_exported(tmp_path: Path) -> None:
    whole = finish(1, tmp_path / "one", *XL, "training.steps=4")
    folder = finish(2, tmp_path / "two", *XL, "training.steps=2")
    children = ranks.start(2, _train_on, str(folder), 4, *XL, "training.steps=2")
    ranks.join(children)
    assert [child.exitcode for child in children] == [0, 0]
    torch.testing.assert_close(torch.tensor(losses(folder)), torch.tensor(losses(whole)), rtol=1e-4, atol=0)
    saved = load_file(folder / "checkpoints" / "step-00000004" / "ema.safetensors")
    exported = load_file(folder / "pipeline" / "backbone" / "diffusion_pytorch_model.safetensors")
    assert max(tensor.shape[-1] for tensor in exported.values()) == 6 * 1152
    assert exported.keys() == saved.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in saved.items())
