"""Checkpoints are whole or absent, complete, and pruned with care."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

import dinit
from dinit import files
from dinit.training.run import checkpoint as checkpoints
from dinit.training.run.checkpoint import (
    FORMAT,
    Checkpoint,
    NewerFormat,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)


def make(step: int) -> Checkpoint:
    tensors = {"w": torch.full((3,), float(step))}
    return Checkpoint(step, tensors, tensors, {"0.step": torch.tensor(float(step))}, tensors, {"seconds": 1.5})


def names(folder: Path) -> list[str]:
    return [path.name for path in list_checkpoints(folder)]


def test_round_trip(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(7), keep=2)
    loaded = load_checkpoint(path)
    assert (loaded.step, loaded.extra) == (7, {"seconds": 1.5})
    assert torch.equal(loaded.model["w"], torch.full((3,), 7.0))
    assert torch.equal(loaded.optimizer["0.step"], torch.tensor(7.0))


@pytest.mark.parametrize("keep", [1, 3])
def test_keeps_the_newest(tmp_path: Path, keep: int) -> None:
    for step in range(1, 6):
        save_checkpoint(tmp_path, make(step), keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in range(6 - keep, 6)]


@pytest.mark.parametrize("damage", ["truncate", "remove", "garble"])
def test_damaged_checkpoint_is_passed_over(tmp_path: Path, damage: str) -> None:
    save_checkpoint(tmp_path, make(1), keep=2)
    file = save_checkpoint(tmp_path, make(2), keep=2) / "ema.safetensors"
    if damage == "truncate":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "remove":
        file.unlink()
    else:
        file.write_bytes(b"\xff" * file.stat().st_size)
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    with pytest.raises(ValueError, match="damaged or incomplete"):
        load_checkpoint(file.parent)


@pytest.mark.parametrize("function", ["save_file", "_sync", "replace"])
def test_failure_while_writing_leaves_the_last_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    save_checkpoint(tmp_path, make(1), keep=1)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    owner = {"save_file": checkpoints, "_sync": files, "replace": os}[function]
    monkeypatch.setattr(owner, function, fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(tmp_path, make(2), keep=1)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1


def test_leftovers_of_a_killed_run_are_no_checkpoints_and_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".dinit-abc.tmp").mkdir()
    (tmp_path / ".dinit-abc.tmp" / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".dinit-def.tmp").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) is None
    files.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_optimizer_goes_on_exactly() -> None:
    def run(resume: bool) -> torch.Tensor:
        weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        for i in range(6):
            if resume and i == 3:
                tensors = optimizer_tensors(optimizer)
                optimizer = torch.optim.AdamW([weight], lr=0.1)
                restore_optimizer(optimizer, tensors)
            weight.grad = torch.tensor([float(i), -1.0 - i])
            optimizer.step()
        return weight.detach()

    assert torch.equal(run(resume=True), run(resume=False))


def test_files_say_which_weights_they_hold_and_who_wrote_them(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, make(7), keep=2)
    assert {file.name for file in path.glob("*.safetensors")} == {
        "raw.safetensors",
        "ema.safetensors",
        "optimizer.safetensors",
        "random.safetensors",
    }
    state = json.loads((path / "state.json").read_text())
    assert (state["format"], state["dinit"]) == (FORMAT, dinit.__version__)
    assert load_checkpoint(path).version == dinit.__version__


def test_a_checkpoint_of_the_first_format_loads(tmp_path: Path) -> None:
    """As dinit wrote it before formats had numbers: model.safetensors, and neither format nor version."""
    path = save_checkpoint(tmp_path, make(7), keep=2)
    (path / "raw.safetensors").rename(path / "model.safetensors")
    state = json.loads((path / "state.json").read_text())
    del state["format"], state["dinit"]
    (path / "state.json").write_text(json.dumps(state))
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.model["w"], torch.full((3,), 7.0))
    assert loaded.step == 7


def test_a_checkpoint_of_a_newer_dinit_is_not_passed_over(tmp_path: Path) -> None:
    """Going on from an older one, or from none, would overwrite what the newer version trained."""
    save_checkpoint(tmp_path, make(1), keep=2)
    path = save_checkpoint(tmp_path, make(2), keep=2)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "format": FORMAT + 1, "dinit": "9.1.0"}))
    with pytest.raises(NewerFormat, match=r"written by dinit 9\.1\.0, in format"):
        newest_checkpoint(tmp_path)


def test_all_damaged_is_not_none(tmp_path: Path) -> None:
    for step in (1, 2):
        (save_checkpoint(tmp_path, make(step), keep=2) / "state.json").write_text("{")
    with pytest.raises(ValueError, match="remove them to start again"):
        newest_checkpoint(tmp_path)


def test_nothing_is_pruned_for_a_checkpoint_that_was_not_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tmp_path, make(1), keep=1)
    honest = checkpoints.save_file

    def short(tensors: dict[str, torch.Tensor], path: Path) -> None:
        honest(tensors, path)
        if path.name == "ema.safetensors":
            path.write_bytes(path.read_bytes()[:-4])

    monkeypatch.setattr(checkpoints, "save_file", short)
    with pytest.raises(OSError, match=r"ema\.safetensors could not be written"):
        save_checkpoint(tmp_path, make(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
