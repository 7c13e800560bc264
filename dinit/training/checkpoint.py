"""Checkpoints of a training run: atomic, complete, and read without running any code from them.

checkpoints/step-00001000/ holds model.safetensors, ema.safetensors, optimizer.safetensors, random.safetensors
(torch's generators of every process), powers.safetensors where there are EMAs of other widths, and state.json
(step, seconds, loss scale). The step fixes the data position, the learning rate and all noise, so they need no
state.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinit.files import remove_folder, whole_folder

_TENSORS = ("model", "ema", "optimizer", "random")


@dataclass(frozen=True)
class Checkpoint:
    """Everything a run needs to go on after `step` optimiser steps.

    model, ema: state dicts. optimizer: `optimizer_tensors`. random: `random_state` of every process. extra:
    plain values. powers: '{width}/{parameter}' of every power-function EMA.
    """

    step: int
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    extra: Mapping[str, Any] = field(default_factory=dict)
    powers: Mapping[str, Tensor] = field(default_factory=dict)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes folder/step-XXXXXXXX, then removes all but the newest `keep` checkpoints. Returns its path."""
    target = folder / f"step-{checkpoint.step:08d}"
    with whole_folder(target) as temporary:
        for name in (*_TENSORS, *(["powers"] if checkpoint.powers else [])):
            tensors: Mapping[str, Tensor] = getattr(checkpoint, name)
            plain = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
            save_file(plain, temporary / f"{name}.safetensors")
        state = {"step": checkpoint.step, "extra": dict(checkpoint.extra)}
        (temporary / "state.json").write_text(json.dumps(state, indent=1))
    for old in [path for path in list_checkpoints(folder) if path.name < target.name][: -(keep - 1) or None]:
        remove_folder(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones are passed over. None where there is none."""
    for path in reversed(list_checkpoints(folder)):
        try:
            return load_checkpoint(path)
        except ValueError:
            continue
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Reads one checkpoint. ValueError where it is not whole."""
    try:
        state = json.loads((path / "state.json").read_text())
        model, ema, optimizer, random = (load_file(path / f"{name}.safetensors") for name in _TENSORS)
        powers = path / "powers.safetensors"
        averages = load_file(powers) if powers.exists() else {}
        return Checkpoint(state["step"], model, ema, optimizer, random, state["extra"], averages)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise ValueError(f"checkpoint {path} is damaged or incomplete: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as '{parameter}.{name}'. Its settings are the recipe's, so they are not stored."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave, on the devices that the parameters are on now."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state(rank: int, device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators in this process."""
    states = {f"{rank}.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"{rank}.cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_state(states: Mapping[str, Tensor], rank: int, device: torch.device) -> None:
    """Puts this process's generators back; those of a process that the checkpoint lacks stay as they are."""
    if f"{rank}.cpu" in states:
        torch.set_rng_state(states[f"{rank}.cpu"])
    if device.type == "cuda" and f"{rank}.cuda" in states:
        torch.cuda.set_rng_state(states[f"{rank}.cuda"], device)
