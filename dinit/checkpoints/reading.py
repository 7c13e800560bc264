"""Reading of published weights: .pt, .pth, .ckpt and .bin as data only, .safetensors, and folders of diffusers.

Nothing in a file is ever run: pickles are opened with weights_only=True and in no other way.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dinit.checkpoints.layouts.score_sde import ema_state
from dinit.checkpoints.stored import run_arguments

Weights = Literal["ema", "model"]
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
SUFFIXES = (*PICKLES, ".safetensors")

# Entries of a training checkpoint that hold a state, in the order in which they are looked for.
_EMA = ("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict")
_MODEL = ("model", "state_dict", "model_state_dict", "net", "network", "module")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and torch.compile
_CHUNK = 2**22

State = dict[str, Tensor]


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
    """

    path: Path
    state: State
    files: dict[str, str]
    entry: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    index: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(source: str | Path, weights: Weights | None = None, sha256: str | None = None) -> Checkpoint:
    """Read the weights in a file or folder.

    Args:
        source: A .pt, .pth, .ckpt, .bin or .safetensors file, or a model or pipeline folder of diffusers.
        weights: Which weights of a training checkpoint: 'ema' or 'model'; None is the EMA if there is one.
        sha256: Of the file, 64 hexadecimal digits, compared before it is opened.

    Returns:
        The tensors, and what is stored with them.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is damaged, is no checkpoint, contains more than data, has another SHA-256, or lacks the
            requested weights.
    """
    path = Path(source).expanduser()
    if weights not in (None, "ema", "model"):
        raise ValueError(f"weights must be ema or model, got {weights!r}")
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is not there; give a checkpoint ({', '.join(SUFFIXES)}) or a folder of one"
        )
    folder = _model_folder(path) if path.is_dir() else None
    files = [path] if folder is None else _weight_files(folder)
    hashes = _check_hashes(files, sha256)
    if folder is None:
        return _unwrap(path, read_file(path), weights, hashes)
    if weights is not None:
        raise ValueError(f"{path} is a folder of one set of weights: leave weights ({weights}) out")
    state: State = {}
    for file in files:
        state |= _strip(_bare(file, read_file(file)))
    return Checkpoint(
        path,
        state,
        hashes,
        config=_json(folder / "config.json"),
        scheduler=_json(path / "scheduler" / "scheduler_config.json"),
        index=_json(path / "model_index.json"),
    )


def read_file(path: Path) -> Any:
    """The contents of a file: a state for safetensors, any plain data for the others. ValueError as above."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} is no checkpoint by its name; those end in {', '.join(SUFFIXES)}")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; copy or download it again")
    if suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged or no safetensors file: {error}; download it again") from error
    return _read_pickle(path)


def _read_pickle(path: Path) -> Any:
    """torch.load without running anything. A zip is mapped, so that an optimiser's state costs no memory."""
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _check_sums(path)
    try:
        # DiT's and SiT's checkpoints hold the command line of their training, as argparse keeps it.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "it ends too early"
        if isinstance(error, KeyError):  # whose text is the bare key
            reason = "no pickle in it"
        raise ValueError(f"{path} is damaged or no checkpoint ({reason}); copy or download it again") from error


def _refusal(path: Path, reason: str) -> str:
    """Why a pickle was not opened: it names code, or it is no pickle at all."""
    code = re.search(r"Unsupported (?:global|class|operand).*?([\w.]+\.\w+)", reason) or re.search(
        r"GLOBAL ([\w.]+)", reason
    )
    if code is None:
        return f"{path} is damaged or no checkpoint of PyTorch; copy or download it again"
    return (
        f"{path} holds more than data: it names {code[1]}, and opening that could run code, so it was not opened. "
        "Use a safetensors file, or, if you trust this one, extract its state_dict and save that as safetensors"
    )


def _check_sums(path: Path) -> None:
    """Compare the checksums that a zip stores, which torch.load does not. ValueError for a wrong one."""
    try:
        with zipfile.ZipFile(path) as archive:
            for part in archive.infolist():
                if part.CRC:  # 0: written without checksums
                    with archive.open(part) as stream:
                        while stream.read(_CHUNK):
                            pass
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged ({error}); copy or download it again") from error


def _unwrap(path: Path, content: Any, weights: Weights | None, files: dict[str, str]) -> Checkpoint:
    """The state inside a training checkpoint, or the bare one."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state of named tensors")
    args = run_arguments(content)
    emas = [key for key in _EMA if _is_state(content.get(key))]
    models = [key for key in _MODEL if _is_state(content.get(key))]
    if _lists_ema(content) and models and weights != "model":
        return Checkpoint(path, _bare(path, ema_state(content)), files, "ema", args)
    if not emas and not models:
        if weights is not None:
            raise ValueError(f"{path} is a bare state with one set of weights: leave weights ({weights}) out")
        return Checkpoint(path, _strip(_bare(path, content)), files, args=args)
    chosen = models if weights == "model" else emas if weights == "ema" else emas + models
    if not chosen:
        raise ValueError(f"{path} has no {weights} weights, it has {', '.join(emas + models)}: choose those")
    return Checkpoint(path, _strip(_bare(path, content[chosen[0]])), files, chosen[0], args)


def _bare(path: Path, content: Any) -> State:
    """A state, checked: every value a tensor, and every number finite. ValueError names what is not."""
    if not content or not _is_state(content):
        entries = ", ".join(map(str, list(content)[:6])) if isinstance(content, Mapping) else ""
        raise ValueError(f"{path} holds no state of named tensors (it has: {entries or 'nothing'})")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{path} mixes tensors with other things ({', '.join(others[:6])}); save its state alone")
    broken = [key for key, t in content.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    if broken:
        names = ", ".join(broken[:10]) + (f" and {len(broken) - 10} more" if len(broken) > 10 else "")
        raise ValueError(
            f"{path} has numbers that are infinite or not numbers in {names}; take an earlier checkpoint"
        )
    return dict(content)


def _is_state(content: Any) -> bool:
    """Whether these are named tensors."""
    return (
        isinstance(content, Mapping)
        and any(isinstance(value, Tensor) for value in content.values())
        and all(isinstance(key, str) for key in content)
    )


def _lists_ema(content: Mapping[str, Any]) -> bool:
    """Whether the averaged parameters are a list without names, as score_sde keeps them."""
    ema = content.get("ema")
    return isinstance(ema, Mapping) and isinstance(ema.get("shadow_params"), list)


def _strip(state: State) -> State:
    """Names without the prefixes that wrappers of the whole model put before all of them."""
    for prefix in _PREFIXES * 2:  # a wrapper in a wrapper, in either order
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _model_folder(path: Path) -> Path:
    """The folder with the denoiser: the source itself, or its part of a pipeline. ValueError for neither."""
    for part in ("transformer", "unet", "."):
        if (path / part / "config.json").is_file():
            return path / part
    if (path / "model_index.json").is_file():
        raise ValueError(
            f"{path} is a pipeline without a transformer/ or unet/ in it; dinit's own need no conversion"
        )
    raise ValueError(
        f"{path} is no model folder: it has no config.json, and no transformer/ with one; give the file"
    )


def _weight_files(folder: Path) -> list[Path]:
    """The weights of a model folder, shards in order, safetensors first. ValueError where one is missing."""
    for suffix in (".safetensors", ".bin"):
        single = folder / f"diffusion_pytorch_model{suffix}"
        if single.is_file():
            return [single]
        index = Path(f"{single}.index.json")
        if index.is_file():
            shards = [folder / name for name in sorted(set(_json(index).get("weight_map", {}).values()))]
            absent = [shard.name for shard in shards if not shard.is_file()]
            if absent or not shards:
                raise ValueError(f"{index} lists {', '.join(absent) or 'nothing'}, not in its folder; download it")
            return shards
    raise ValueError(f"{folder} has no diffusion_pytorch_model.safetensors (or .bin); download it again")


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


def _json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none. ValueError for a damaged one."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(content).__name__}")
    return content
