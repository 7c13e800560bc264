"""Checkpoints of a training run: atomic, complete, and read without running any code from them.

checkpoints/step-00001000/ holds raw.safetensors (the weights that are trained), ema.safetensors (their average),
optimizer.safetensors, random.safetensors (torch's generators of every process), powers.safetensors where there are
EMAs of other widths, beside.safetensors where more than the model is trained, merged.safetensors (the average
with what fine-tuning added in its weights, for `dinit.checkpoints.runs`), and state.json (step, seconds, loss
scale, format and version). The step fixes the data position, the learning rate and all noise, so they have no state
here. Tensors are whole, whatever the number of processes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dinit import __version__
from dinit.files import remove_folder, whole_folder
from dinit.training.sharding import like

FORMAT = 2
"""1, which state.json does not name: the trained weights are in model.safetensors. 2: in raw.safetensors."""
_TENSORS = ("model", "ema", "optimizer", "random")
_OPTIONAL = ("powers", "auxiliary")
_FILES = {"auxiliary": "beside"}  # where a file has another name than the field


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to continue after `step` optimiser steps.

    model, ema: state dicts. optimizer: `optimizer_tensors`. random: `random_state` of every process. extra:
    plain values. powers: '{width}/{parameter}' of every power-function EMA. auxiliary: state dict of trained
    modules that are no part of the model. merged: the averaged weights as a pipeline has them, where `ema` has
    others; written, and not read again.
    """

    step: int
    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    random: Mapping[str, Tensor]
    extra: Mapping[str, Any] = field(default_factory=dict)
    powers: Mapping[str, Tensor] = field(default_factory=dict)
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict)
    merged: Mapping[str, Tensor] = field(default_factory=dict)
    version: str = __version__


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, and why."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write folder/step-XXXXXXXX, read its headers back, then remove all but the newest `keep` checkpoints.

    Returns its path. OSError, and nothing was removed, where it could not be written completely.
    """
    target = folder / f"step-{checkpoint.step:08d}"
    with whole_folder(target) as temporary:
        for name in (*_TENSORS, *(name for name in (*_OPTIONAL, "merged") if getattr(checkpoint, name))):
            _write(temporary / _file(name), getattr(checkpoint, name))
        state = {"format": FORMAT, "dinit": __version__, "step": checkpoint.step, "extra": dict(checkpoint.extra)}
        (temporary / "state.json").write_text(json.dumps(state, indent=1))
    for old in [path for path in list_checkpoints(folder) if path.name < target.name][: -(keep - 1) or None]:
        remove_folder(old)
    return target


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, value in tensors.items():
        own = value.detach().cpu().contiguous()
        plain[key] = own.clone() if own.untyped_storage().data_ptr() in storages else own  # safetensors shares none
        storages.add(own.untyped_storage().data_ptr())
    try:
        save_file(plain, path)
        with safe_open(path, "pt") as written:  # ValueErrors of safetensors: the file ends too soon
            names = set(written.keys())
    except SafetensorError as error:  # its error for a full disk
        raise OSError(f"{path.name} could not be written: {error}") from error
    if names != set(plain):
        raise OSError(f"{path.name} was not written whole")


def _file(name: str, form: int = FORMAT) -> str:
    return f"{'raw' if name == 'model' and form > 1 else _FILES.get(name, name)}.safetensors"


def list_checkpoints(folder: Path) -> list[Path]:
    """All checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob("step-*") if path.is_dir())


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint; damaged ones are skipped. None where there is none at all.

    CheckpointError where all are damaged, or where one is of a newer format: a run must not start again over them.
    """
    paths, errors = list_checkpoints(folder), []
    for path in reversed(paths):
        try:
            return load_checkpoint(path)
        except NewerFormat:
            raise
        except CheckpointError as error:
            errors.append(str(error))
    if errors:
        raise CheckpointError(f"no checkpoint in {folder} is whole; remove them to start again. {errors[0]}")
    return None


class NewerFormat(CheckpointError):
    """A checkpoint that a newer dinit wrote."""


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint, of this format or an older one. CheckpointError where it is incomplete, or newer."""
    try:
        state = json.loads((path / "state.json").read_text())
        form, version = state.get("format", 1), state.get("dinit", "0.1.0")
        if form > FORMAT:
            raise NewerFormat(
                f"checkpoint {path} was written by dinit {version}, in format {form}; this dinit {__version__} "
                f"reads formats up to {FORMAT}. Continue with dinit {version} or newer"
            )
        parts: dict[str, Any] = {name: load_file(path / _file(name, form)) for name in _TENSORS}
        for name in _OPTIONAL:
            file = path / _file(name, form)
            parts[name] = load_file(file) if file.exists() else {}
        return Checkpoint(step=state["step"], extra=state["extra"], version=version, **parts)
    except (
        OSError,
        KeyError,
        TypeError,
        AttributeError,
        UnicodeDecodeError,
        json.JSONDecodeError,
        SafetensorError,
    ) as error:
        raise CheckpointError(f"checkpoint {path} is damaged or incomplete: {error}") from error


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as '{parameter}.{name}'. Its settings are the recipe's, so they are not stored."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_tensors` returned, on the devices of the parameters, sharded as they are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        parameter = parameters[int(index)]
        placed = like(value.to(parameter.device), parameter) if value.shape == parameter.shape else value
        state.setdefault(int(index), {})[name] = placed
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state(rank: int, device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators in this process."""
    states = {f"{rank}.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states[f"{rank}.cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_state(states: Mapping[str, Tensor], rank: int, device: torch.device) -> None:
    """Restore this process's generators; they stay as they are where the checkpoint has none of this process."""
    if f"{rank}.cpu" in states:
        torch.set_rng_state(states[f"{rank}.cpu"])
    if device.type == "cuda" and f"{rank}.cuda" in states:
        torch.cuda.set_rng_state(states[f"{rank}.cuda"], device)
