"""Folders of diffusers: where their weights are, with variants, shards and averages; their configurations."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dinit.checkpoints.containers import SUFFIXES
from dinit.checkpoints.entries import is_averaged
from dinit.checkpoints.locating import read_json
from dinit.contents import SHARD, unfit, weight_variants

_PARTS = ("transformer", "unet")
_INDEX = re.compile(r"\.index(\.\w+)?\.json$")


@dataclass(frozen=True)
class Weights:
    """The files of one set of weights in a folder.

    Args:
        files: In order.
        entry: The part or variant of several that was chosen; "" where there is one.
        folder: The folder of the model, with its config.json.
        notes: What was chosen, in words.
        names: Names of the tensors that an index lists; None without an index.
    """

    files: tuple[Path, ...]
    entry: str
    folder: Path
    notes: tuple[str, ...] = ()
    names: frozenset[str] | None = None


def find_weights(path: Path, weights: str | None) -> Weights:
    """The files of the weights in a folder of diffusers, or of an index of shards.

    Args:
        path: A model folder, a pipeline folder, or an index.
        weights: 'ema', 'model', a part or a variant, where there are several; None is the average if there is one.

    Raises:
        ValueError: there are none, several and no choice, or files are missing.
    """
    if path.is_file():
        return _of_index(path, path.parent, "")
    folder, part = _model_folder(path, weights)
    found = weight_variants(folder)
    if not found:
        raise ValueError(
            f"{folder} has no diffusion_pytorch_model.safetensors (or .bin); download it again{_has(folder)}"
        )
    variant = _variant(folder, found, None if part else weights)
    notes = (
        [f"read from {found[variant].name}, the only file of weights in its folder"]
        if variant and len(found) == 1
        else []
    )
    entry = part or (variant if len(found) > 1 else "")
    if _INDEX.search(found[variant].name):
        return _of_index(found[variant], folder, entry, tuple(notes))
    return Weights((found[variant],), entry, folder, tuple(notes))


def _model_folder(path: Path, weights: str | None) -> tuple[Path, str]:
    """The folder with the denoiser: the source, or its part of a pipeline; and the part's name, of several."""
    for part in _PARTS:
        own, averages = path / part, _averages(path, part)
        found = {one.name: one for one in (own, *averages) if (one / "config.json").is_file()}
        if weights in found and len(found) > 1:
            return found[weights], weights
        if len(averages) > 1 and weights in (None, "ema"):
            names = ", ".join(one.name for one in averages)
            raise ValueError(f"{path} has several averages of {part}, {names}: give the folder of one")
        if averages and own.name in found:
            if weights not in (None, "ema", "model"):
                raise ValueError(f"{path} has {', '.join(found)}: weights is ema or model, got {weights!r}")
            chosen = own if weights == "model" else averages[0]
            return chosen, chosen.name
        for one in found.values():
            return one, ""
    if (path / "config.json").is_file():
        return path, ""
    if (path / "model_index.json").is_file():
        raise ValueError(
            f"{path} is a pipeline without a transformer/ or unet/ in it; dinit's own need no conversion"
        )
    raise ValueError(
        f"{path} is no model folder: it has no config.json, and no transformer/ with one; give the file{_has(path)}"
    )


def _averages(path: Path, part: str) -> list[Path]:
    """Folders next to a part of a pipeline that have averages of it: unet_ema/, ema_unet/."""
    return sorted(
        one
        for one in path.iterdir()
        if part in one.name.lower() and is_averaged(one.name) and (one / "config.json").is_file()
    )


def _has(folder: Path) -> str:
    """The checkpoints in a folder, for a message."""
    names = sorted(one.name for one in folder.iterdir() if one.suffix.lower() in SUFFIXES)
    return f" (it has {', '.join(names[:8])})" if names else ""


def _variant(folder: Path, found: dict[str, Path], weights: str | None) -> str:
    """The variant that is meant. ValueError where that is open."""
    averaged = [name for name in found if is_averaged(name) and not name.startswith("non")]
    own = [name for name in found if name not in averaged]
    if weights is not None and weights in found:
        return weights
    if weights not in (None, "ema", "model") or (weights is not None and not (averaged and own)):
        listed = ", ".join(name or "the usual one" for name in found)
        one = f"is a folder of one set of weights: leave weights ({weights}) out"
        raise ValueError(f"{folder} {one if len(found) == 1 else f'has the variants {listed}, not {weights!r}'}")
    choice = averaged if averaged and weights != "model" else own
    if "" in choice:
        return ""
    if len(choice) == 1:
        return choice[0]
    raise ValueError(
        f"{folder} has the variants {', '.join(choice)} and no usual one: choose one, weights={choice[0]!r} "
        f"(--weights {shlex.quote(choice[0])})"
    )


def _of_index(index: Path, folder: Path, entry: str, notes: tuple[str, ...] = ()) -> Weights:
    """The shards that an index lists, as Weights."""
    names, tensors = _shards(index)
    return Weights(tuple(folder / name for name in names), entry, folder, notes, tensors)


def shards(index: Path) -> tuple[Path, ...]:
    """The files that an index of shards lists, in order. ValueError where one is missing or elsewhere."""
    return tuple(index.parent / name for name in _shards(index)[0])


def _shards(index: Path) -> tuple[list[str], frozenset[str]]:
    """Names of the shards and of the tensors in an index."""
    table = read_object(index).get("weight_map")
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise ValueError(
            f"{index} lists nothing: its weight_map must give the file of each tensor; download it again"
        )
    names = sorted(set(table.values()))
    odd = [name for name in names if PurePosixPath(name.replace("\\", "/")).name != name]
    if odd:
        raise ValueError(
            f"{index} names {odd[0]}, which is not a file of its folder; shards stand next to their index"
        )
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise ValueError(f"{index} lists {', '.join(absent[:6])}, not in its folder; download it")
    return names, frozenset(table)


def is_index(path: Path) -> bool:
    """Whether this is the index of a set of shards, by its name."""
    return bool(_INDEX.search(path.name))


def check_single(path: Path) -> None:
    """ValueError where this file is one shard of several, or a configuration."""
    shard = SHARD.search(path.name)
    if shard and int(shard[2]) > 1:
        raise ValueError(
            f"{path} is part {int(shard[1])} of {int(shard[2])} of the weights; give its folder {path.parent}, or "
            "the index in it"
        )
    if path.suffix.lower() == ".json":
        raise ValueError(f"{path} is a configuration, no weights; give its folder {path.parent}")
    if path.suffix.lower() in (".yaml", ".yml"):
        raise ValueError(unfit(path, "weights, or a folder of diffusers"))


def pipeline_of(model: Path) -> Path:
    """The folder with model_index.json and scheduler/ of a model folder: the one above it, or itself."""
    return model.parent if (model.parent / "model_index.json").is_file() else model


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none. ValueError for a damaged one."""
    return read_json(path) if path.is_file() else {}
