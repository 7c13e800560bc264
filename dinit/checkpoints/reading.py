"""Reading of published weights: files of PyTorch as data only, .safetensors, folders of diffusers."""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinit.checkpoints.choosing import choose, tables
from dinit.checkpoints.containers import SUFFIXES, read_file
from dinit.checkpoints.entries import State, is_averaged
from dinit.checkpoints.folders import check_single, find_weights, is_index, pipeline_of, read_object
from dinit.checkpoints.stored import run_arguments
from dinit.files import user_path

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint file or folder.

    Attributes:
        path: Where it was read from.
        state: The tensors under their original names.
        files: What was read, file name to SHA-256.
        entry: The part of a training checkpoint that `state` is ("ema", "model"); "" for a bare state.
        args: The arguments of the run that a training checkpoint has stored, see `run_arguments`.
        config: config.json of a diffusers folder; empty elsewhere.
        scheduler: scheduler_config.json of a diffusers folder; empty elsewhere.
        index: model_index.json of a diffusers folder; empty elsewhere.
        notes: What was chosen, left out or completed, in words.
        betas: The noise schedule that a training checkpoint has next to its weights.
    """

    path: Path
    state: State
    files: dict[str, str]
    entry: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    betas: Tensor | None = None


def read_checkpoint(source: str | Path, weights: str | None = None, sha256: str | None = None) -> Checkpoint:
    """Read the weights in a file or folder.

    Args:
        source: A .pt, .pth, .ckpt, .bin, .tar or .safetensors file, the index of its shards, or a model or pipeline
            folder of diffusers.
        weights: Of a training checkpoint or folder with several sets: 'ema', 'model', or the name of an entry;
            None is the averaged weights if there are any.
        sha256: Of the file, 64 hexadecimal digits, compared before it is opened.

    Returns:
        The tensors, and what is stored with them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is damaged, is no checkpoint, contains more than data, has another SHA-256, or lacks the
            requested weights, or has several and it is open which are meant.
    """
    path = user_path(source)
    if not path.exists():
        link = f"is a link to {path.readlink()}, which is not there" if path.is_symlink() else "is not there"
        raise FileNotFoundError(f"{path} {link}; give a checkpoint ({', '.join(SUFFIXES)}) or a folder of one")
    if path.is_dir() or is_index(path):
        return _folder(path, weights, sha256)
    check_single(path)
    hashes = _check_hashes([path], sha256)
    content = read_file(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state of named tensors")
    try:
        chosen = choose(content, weights)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    if weights is None and not is_averaged(chosen.name):
        _warn_of_average(path)
    model = path.parent if path.name.startswith("diffusion_pytorch_model") else None
    return Checkpoint(
        path,
        _checked(path, chosen.state),
        hashes,
        chosen.name,
        run_arguments(content),
        notes=(*chosen.notes, *_dtypes(chosen.state)),
        betas=chosen.betas,
        **({} if model is None else _configurations(model, pipeline_of(model))),
    )


def _folder(path: Path, weights: str | None, sha256: str | None) -> Checkpoint:
    """The weights and the configurations of a folder of diffusers, or of an index of shards."""
    found = find_weights(path, weights)
    hashes = _check_hashes(list(found.files), sha256)
    content: dict[str, Any] = {}
    for file in found.files:
        part = read_file(file)
        if not isinstance(part, Mapping):
            raise ValueError(f"{file} holds a {type(part).__name__}, not a state of named tensors")
        if twice := content.keys() & part.keys():
            raise ValueError(f"{path} has {min(twice)} in two of its files; download it again")
        content |= part
    try:
        chosen = choose(content, None)
    except ValueError as error:
        raise ValueError(f"{found.files[0]} {error}") from error
    state, notes = chosen.state, [*found.notes, *chosen.notes]
    if weights is None and not is_averaged(f"{found.entry} {found.folder.name}"):
        _warn_of_average(found.files[0])
    if found.names is not None and len(found.names) != len(state):
        raise ValueError(
            f"{found.folder} has {len(state)} tensors in its shards, its index lists {len(found.names)}; these are "
            "of different downloads: download it again"
        )
    pipeline = path if (path / "model_index.json").is_file() else pipeline_of(found.folder)
    return Checkpoint(
        path,
        _checked(path, state),
        hashes,
        found.entry,
        notes=(*notes, *_dtypes(state)),
        betas=chosen.betas,
        **_configurations(found.folder, pipeline),
    )


def _configurations(model: Path, pipeline: Path) -> dict[str, Any]:
    return {
        "config": read_object(model / "config.json"),
        "scheduler": read_object(pipeline / "scheduler" / "scheduler_config.json"),
        "index": read_object(pipeline / "model_index.json"),
    }


def _checked(path: Path, state: State) -> State:
    """The state, if every tensor is an ordinary one and every number finite. ValueError names what is not.

    Numbers of a table that the network computes itself may be infinite: the table is compared.
    """
    odd = {key: kind for key, tensor in state.items() if (kind := _odd(tensor))}
    if odd:
        raise ValueError(
            f"{path} has {_some(odd)} as {next(iter(odd.values()))}, where weights are float16, bfloat16, float32 "
            "or float64; save them as one of these"
        )
    fixed = tables(state)
    broken = [key for key, one in state.items() if key not in fixed and _is_weight(key) and not _finite(one)]
    if broken:
        raise ValueError(
            f"{path} has numbers that are infinite or not numbers in {_some(broken)}; take an earlier checkpoint"
        )
    return dict(state)


def _finite(tensor: Tensor) -> bool:
    """Whether every number is finite. So they are where their sum is, which reads a mapped file only once."""
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


def _odd(tensor: Tensor) -> str | None:
    """What makes a tensor no ordinary one of weights, tables or indices; None for nothing."""
    if tensor.is_meta:
        return "a shape without numbers (meta)"
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
        return "a nested, sparse or quantized tensor"
    ordinary = tensor.dtype in _FLOATS or not (tensor.is_floating_point() or tensor.is_complex())
    return None if ordinary else str(tensor.dtype).removeprefix("torch.")


def _is_weight(key: str) -> bool:
    """Whether it is not a mask, whose infinities are no damage."""
    return not re.search(r"(?:^|[._])mask$", key)


def _some(keys: Mapping[str, Any] | list[str]) -> str:
    listed = list(keys)
    return ", ".join(listed[:10]) + (f" and {len(listed) - 10} more" if len(listed) > 10 else "")


def _dtypes(state: State) -> list[str]:
    """A note where weights are of another precision than the pipeline, whose weights are float32."""
    found = sorted({str(one.dtype).removeprefix("torch.") for one in state.values() if one.dtype in _FLOATS})
    return (
        [f"its weights are {', '.join(found)}, those of the pipeline float32"]
        if found not in ([], ["float32"])
        else []
    )


def _warn_of_average(path: Path) -> None:
    """Warn where averaged weights are in a file next to this one, as some programs save them."""
    number = re.fullmatch(r"model(\d+)", path.stem)
    pattern = rf"ema_[\d.]+_{number[1]}" if number else rf"(?:ema[_-])?{re.escape(path.stem)}(?:[_-]ema)?|ema"
    for file in sorted(path.parent.iterdir()):
        stem = file.name.removesuffix(file.suffix)
        if file.suffix.lower() in SUFFIXES and file != path and is_averaged(stem) and re.fullmatch(pattern, stem):
            warnings.warn(
                f"{path.name} was read, and {file.name} next to it may be its averaged weights, which programs "
                "sample with: convert that, or choose weights='model' (--weights model)",
                stacklevel=4,
            )
            return


def _check_hashes(files: list[Path], sha256: str | None) -> dict[str, str]:
    """SHA-256 of every file by its name. ValueError where it differs from the given one."""
    given = None if sha256 is None else sha256.strip().lower().removeprefix("sha256:")
    if given is not None and not re.fullmatch(r"[0-9a-f]{64}", given):
        raise ValueError(f"a SHA-256 has 64 hexadecimal digits, got {sha256!r}")
    if given is not None and len(files) > 1:
        raise ValueError(f"the weights are in {len(files)} files, so one SHA-256 cannot check them; leave it out")
    hashes = {}
    for file in files:
        with file.open("rb") as stream:
            hashes[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
        if given not in (None, hashes[file.name]):
            raise ValueError(
                f"{file} was not opened: its SHA-256 is {hashes[file.name]}, not the given {given}; it is not the "
                "published file, or damaged: download it again"
            )
    return hashes
