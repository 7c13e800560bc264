"""Sets of weights inside a training checkpoint: the model's own and averages of it, under whatever names.

A set is averaged where a name on the way to it has a word like ema, averaged, shadow, polyak or swa. Sets are found
at any depth, and inside a flat state by the prefix of its names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import Tensor

from dinit.checkpoints.layouts import candidates

State = dict[str, Tensor]

# Names of modules that wrap the network or contain it.
_WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_fpw_module",
    "_forward_module",
    "module",
)
OUTER = (
    "model", "net", "network", "online_model", "denoiser", "diffusion_model", "denoise_fn", "unet", "transformer",
    "backbone", "generator", "student", "nnet", "score_model", "ema", "ema_model", "dit", "sit",
)  # fmt: skip
# Words of names whose values are no weights, as far as they are numbers, texts or settings.
_COUNTERS = (
    "averaged", "step", "steps", "iteration", "iterations", "iter", "it", "epoch", "epochs", "initted", "updates",
    "decay", "version", "nimg", "loss", "best", "lr", "seed", "date", "time", "fid", "metric", "metrics", "arch",
    "dataset", "name", "rate",
)  # fmt: skip
_SETTINGS = ("args", "config", "cfg", "hparams", "hyper", "arguments", "options", "metadata", "callbacks", "loops")
_OPTIMIZER = ("optimizer", "optimizers", "optim", "opt", "optimiser", "scheduler", "schedulers", "sched", "scaler")
_COPIES = ("collected", "backup", "temp", "online", "original")  # the model's own weights, kept with an average
_GLUED = "model|net|network|unet|nnet|weights?|params?|state|statedict|dict|dit|sit|g|generator|denoiser|module|sd"
EMA = re.compile(rf"emas?|ewa|swa|avg|(?:averag|shadow|polyak)\w*|(?:{_GLUED})ema|ema(?:{_GLUED})")
_LIGHTNING = {"current_model_state", "averaging_state"}  # its WeightAveraging: state_dict is then the average
_LEAST = 8  # tensors of a network inside a larger state
# How an average's names may differ from its model's.
CHANGES: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: name.replace(".", ""),  # LitEma
    lambda name: name.replace(".", "_"),  # OpenMMLab
)


@dataclass(frozen=True)
class Entry:
    """One set of weights of a checkpoint.

    Args:
        name: Where it stands, joined by dots ("ema.module"); "" is the whole file.
        averaged: Whether a name on the way means an average.
        state: Its tensors by name; empty where they have no names.
        listed: Its tensors in order, where they have no names.
        others: Names of what stands with the tensors and may belong to them, but is none.
        left_out: What stands with the tensors and is no weights.
        betas: The noise schedule that a module around the network has kept.
    """

    name: str
    averaged: bool
    state: State
    listed: tuple[Tensor, ...] = ()
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    betas: Tensor | None = None


def find_entries(content: Mapping[Any, Any]) -> list[Entry]:
    """All sets of weights of a checkpoint that was read as `content`, by the names that its network has."""
    entries = [_unwrapped(entry) for entry in _walk(content, (), False, False)]
    if set(content) >= _LIGHTNING:
        return [replace(one, averaged=one.averaged or one.name.startswith("state_dict")) for one in entries]
    return entries


def _walk(value: Any, path: tuple[str, ...], averaged: bool, optimizer: bool) -> Iterator[Entry]:
    """All sets of weights in a tree. optimizer: the tree is an optimiser's, whose moments are no weights."""
    name = ".".join(path)
    if isinstance(value, Mapping):
        tensors = {key: one for key, one in value.items() if isinstance(one, Tensor)}
        inner = {key: one for key, one in value.items() if not isinstance(one, Tensor)}
        found = {key: list(_inside(key, one, path, averaged, optimizer)) for key, one in inner.items()}
        others = [str(key) for key, one in inner.items() if not found[key] and not _no_weights(key, one)]
        others += [str(key) for key in tensors if not isinstance(key, str)]
        named = {key: one for key, one in tensors.items() if isinstance(key, str)}
        if optimizer and not averaged:
            for key, one in named.items():
                if is_averaged(key, strict=True) and one.numel() > 1:
                    yield Entry(f"{name}.{key}", True, {}, listed=(one,))
        elif named:
            left_out = [str(key) for key in inner if not found[key]]
            yield from _flat(name, named, averaged, tuple(others), tuple(left_out))
        elif averaged and tensors:
            yield Entry(name, True, {}, listed=tuple(tensors.values()))
        elif averaged and any("." in str(key) and one is None for key, one in value.items()):
            yield Entry(name, True, {})  # names without their tensors
        for one in found.values():
            yield from one
    elif isinstance(value, list | tuple) and value and all(_is_named(one) for one in value):
        yield from _walk(dict(value), path, averaged, optimizer)
    elif isinstance(value, list | tuple):
        tensors = [one for one in value if isinstance(one, Tensor)]
        if averaged and tensors:
            yield Entry(name, True, {}, listed=tuple(tensors))
        for i, one in enumerate(value):
            yield from _inside(i, one, path, averaged, optimizer)


def _inside(key: Any, value: Any, path: tuple[str, ...], averaged: bool, optimizer: bool) -> Iterator[Entry]:
    if not isinstance(value, Mapping | list | tuple):
        settings = {*_SETTINGS, *_OPTIMIZER} & {word for part in (*path, key) for word in words_of(part)}
        if (averaged or is_averaged(key)) and not settings and _is_stored(value):
            yield Entry(_join(*path, str(key)), True, {})
        return
    words = words_of(key)
    inside = optimizer or bool(set(words) & set(_OPTIMIZER))
    before = averaged and not (inside and not optimizer) and not set(words) & set(_COPIES)
    known = is_averaged(key, strict=inside) and not set(words) & {*_COPIES, *_OPTIMIZER}
    yield from _walk(value, (*path, str(key)), before or known, inside)


def _is_named(one: Any) -> bool:
    """Whether this is a pair of a name and a tensor, as a list of named parameters has them."""
    return (
        isinstance(one, list | tuple) and len(one) == 2 and isinstance(one[0], str) and isinstance(one[1], Tensor)
    )


def _is_stored(value: Any) -> bool:
    """Whether a text or bytes may be weights: bytes of a file, or the name of one."""
    named = isinstance(value, str) and value.endswith((".pt", ".pth", ".ckpt", ".bin", ".safetensors"))
    return named or (isinstance(value, bytes) and bool(value))


def _no_weights(key: Any, value: Any) -> bool:
    """Whether what stands in a state with this name is known to be no part of it."""
    words = set(words_of(key))
    if isinstance(value, Mapping | list | tuple) or not (value is None or isinstance(value, int | float | str)):
        return bool(words & {*_SETTINGS, *_OPTIMIZER}) or (isinstance(value, Mapping | list | tuple) and not value)
    return "." not in str(key) and bool(words & {*_COUNTERS, *_SETTINGS, *_OPTIMIZER, "ema"})


def _flat(
    name: str, tensors: State, averaged: bool, others: tuple[str, ...], left_out: tuple[str, ...]
) -> Iterator[Entry]:
    """The sets of weights in one state, separated by the prefixes of their names."""
    counters = [key for key, one in tensors.items() if _is_counter(key, one)]
    betas = next((one for key, one in tensors.items() if key.split(".")[-1] == "betas" and one.ndim == 1), None)
    sets: dict[str, State] = {}
    for key, one in tensors.items():
        if key not in counters:
            prefix, rest = _averaged_prefix(key)
            sets.setdefault(prefix, {})[rest] = one
    rest = sets.pop("", {})
    pairs, rest = _pairs(rest)
    prefixed = {**sets, **pairs}
    for prefix, state in prefixed.items():
        own = prefix.split(".")[-1] in ("online_model", "online")
        yield Entry(_join(name, prefix), not own, state, left_out=(*left_out, *counters), betas=betas)
    single = {key: one for key, one in rest.items() if "." not in key and is_averaged(key)}
    for key, one in single.items():
        yield Entry(_join(name, key), True, {}, listed=(one,))
    rest = {key: one for key, one in rest.items() if key not in single}
    parts = _parts(rest)
    for prefix, state in parts.items():
        own = not averaged or bool(prefixed) or prefix.startswith("online")
        rests = sorted({key.split(".")[0] for key in rest if not key.startswith(f"{prefix}.")}) if prefix else []
        aside = (*left_out, *counters, *rests)
        yield Entry(_join(name, prefix), not own, state, others=others, left_out=aside, betas=betas)


def _averaged_prefix(key: str) -> tuple[str, str]:
    """A name's prefix up to the last word that means an average, and the rest; "" where there is none."""
    parts = key.split(".")
    hits = [i for i, part in enumerate(parts[:-1]) if is_averaged(part)]
    if not hits:
        return "", key
    end = hits[-1] + 1
    if parts[end] in ("online_model", "online") and end < len(parts) - 1:
        end += 1
    return ".".join(parts[:end]), ".".join(parts[end:])


def _pairs(state: State) -> tuple[dict[str, State], State]:
    """Averages that stand next to their tensors, as ema_X or X_ema for X, and the rest of the state."""
    found: State = {}
    for key, one in state.items():
        match = re.fullmatch(r"ema_(.+)|(.+)[._]ema", key)
        if match:
            found[match[1] or match[2]] = one
    rest = {key: one for key, one in state.items() if not re.fullmatch(r"ema_(.+)|(.+)[._]ema", key)}
    flat = {change(key) for key in rest for change in CHANGES}
    if not found or not rest or not all(key in flat for key in found):
        return {}, state
    return {"ema": found}, rest


def _parts(state: State) -> dict[str, State]:
    """The networks inside a larger state, by prefix; the whole under "" where that is one, or none is known."""
    if not state:
        return {}
    if recognised(_plain_names(state)):
        return {"": state}
    counts = Counter(
        ".".join(parts[:depth])
        for parts in (key.split(".") for key in state)
        for depth in range(1, min(4, len(parts)))
    )
    found: dict[str, State] = {}
    for prefix, number in counts.items():
        if number >= _LEAST and not re.search(r"(^|\.)\d", prefix):
            inside = {
                key.removeprefix(f"{prefix}."): one for key, one in state.items() if key.startswith(f"{prefix}.")
            }
            if recognised(_plain_names(inside)) and not any(prefix.startswith(f"{one}.") for one in found):
                found[prefix] = inside
    return found or {"": state}


def _is_counter(key: str, value: Tensor) -> bool:
    last = key.split(".")[-1]
    return value.numel() <= 1 and bool(set(words_of(last)) & set(_COUNTERS))


# --- names ---


def words_of(name: Any) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", str(name))]


def is_averaged(name: Any, strict: bool = False) -> bool:
    """Whether a word of the name means an average. strict: inside an optimiser, whose moments are averages too."""
    words = words_of(name)
    if strict:
        return bool({"ema", "emas", "swa", "shadow", "polyak"} & set(words))
    return any(EMA.fullmatch(word) for word in words) and words[:2] != ["exp", "avg"] and words[:1] != ["n"]


def _unwrapped(entry: Entry) -> Entry:
    return replace(entry, state=_plain_names(entry.state))


def _plain_names(state: State) -> State:
    """Names without those of wrappers, wherever they stand, and of the module that contains the whole network."""
    short = {".".join(part for part in key.split(".") if part not in _WRAPPERS): one for key, one in state.items()}
    if len(short) == len(state):
        state = short
    while state and len(firsts := {key.split(".")[0] if "." in key else "" for key in state}) == 1:
        first = firsts.pop()
        if first not in OUTER:
            break
        state = {key.removeprefix(f"{first}."): one for key, one in state.items()}
    return state


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def recognised(state: Mapping[str, Tensor]) -> list[str]:
    """The layouts that a state may have; none where it is of none."""
    return list(_recognised(tuple((key, tuple(one.shape)) for key, one in state.items())))


@lru_cache(maxsize=16)
def _recognised(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[str, ...]:
    try:
        return tuple(candidates(dict(shapes)))
    except (ValueError, IndexError):
        return ()
