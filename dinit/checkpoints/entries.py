"""Sets of weights inside a training checkpoint: the model's own and averages of it, under whatever names.

A set is averaged where a name on the way to it has a word like ema, averaged, shadow, polyak or swa. Sets are found
at any depth, and inside a flat state by the prefix of its names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from dinit.checkpoints.layouts import LAYOUTS, candidates

State = dict[str, Tensor]

# The first of these that a checkpoint has is the model, where nothing else decides.
_MODEL = ("model", "state_dict", "model_state_dict", "net", "network", "module")
# Names of modules that wrap the network or contain it.
_WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_fpw_module",
    "_forward_module",
    "module",
)
_OUTER = (
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
_EMA = re.compile(rf"emas?|ewa|swa|avg|(?:averag|shadow|polyak)\w*|(?:{_GLUED})ema|ema(?:{_GLUED})")
_LIGHTNING = {"current_model_state", "averaging_state"}  # its WeightAveraging: state_dict is then the average
_LEAST = 8  # tensors of a network inside a larger state
_SHOWN = 6


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


@dataclass(frozen=True)
class Chosen:
    """The set of weights that was chosen.

    Args:
        name: As in Entry.
        state: Its tensors by name, without the names of wrappers.
        notes: What was left out or completed, in words.
        betas: The noise schedule that stands with it; None where there is none.
    """

    name: str
    state: State
    notes: tuple[str, ...]
    betas: Tensor | None = None


def choose(content: Mapping[Any, Any], weights: str | None) -> Chosen:
    """The set of weights that `weights` names, of a checkpoint that was read as `content`.

    Args:
        content: What the file contains.
        weights: 'ema' is the averaged weights, 'model' the model's own, another text the entry of that name; None
            is the averaged weights if there are any, else the model's own.

    Raises:
        ValueError: there is no such set, there are several, or the averaged weights do not fit the model.
    """
    entries = [_unwrapped(entry) for entry in _walk(content, (), False, False)]
    if set(content) >= _LIGHTNING:
        entries = [replace(one, averaged=one.averaged or one.name.startswith("state_dict")) for one in entries]
    if not any(entry.state or entry.listed for entry in entries):
        has = ", ".join(map(str, list(content)[:_SHOWN])) or "nothing"
        raise ValueError(f"holds no state of named tensors (it has: {has})")
    averaged = _different(_networks([entry for entry in entries if entry.averaged]))
    own = _different(_networks([entry for entry in entries if not entry.averaged]))
    if any(entry.state for entry in averaged):  # what has no names is then an optimiser's
        averaged = [entry for entry in averaged if entry.state]
    if weights == "model":
        if not own or (len(entries) == 1 and not own[0].name):
            raise ValueError(_has_none("model", averaged, own))
        return _finished(_main(own) or _only(own, "model"))
    if weights in (None, "ema"):
        if averaged:
            return _average(_only(averaged, "ema"), own)
        if weights == "ema":
            raise ValueError(_has_none("ema", averaged, own))
        empty = [str(key) for key, one in content.items() if is_averaged(key) and isinstance(one, Mapping | list)]
        notes = [f"no averaged weights in {', '.join(empty[:_SHOWN])}"] if empty else []
        return _finished(_only(own, "model"), notes=notes)
    named = [one for one in entries if one.name == weights] or [
        one for one in entries if one.name.startswith(f"{weights}.")
    ]
    if len(named) != 1:
        raise ValueError(_has_none(repr(weights), named or averaged, named or own))
    return _average(named[0], own) if named[0].averaged else _finished(named[0])


# --- where sets of weights stand ---


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
        settings = {*_SETTINGS, *_OPTIMIZER} & {word for part in (*path, key) for word in _words(part)}
        if (averaged or is_averaged(key)) and not settings and _is_stored(value):
            yield Entry(_join(*path, str(key)), True, {})
        return
    words = _words(key)
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
    words = set(_words(key))
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
    flat = {change(key) for key in rest for change in _CHANGES}
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
    return value.numel() <= 1 and bool(set(_words(last)) & set(_COUNTERS))


# --- names ---


def _words(name: Any) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", str(name))]


def is_averaged(name: Any, strict: bool = False) -> bool:
    """Whether a word of the name means an average. strict: inside an optimiser, whose moments are averages too."""
    words = _words(name)
    if strict:
        return bool({"ema", "emas", "swa", "shadow", "polyak"} & set(words))
    return any(_EMA.fullmatch(word) for word in words) and words[:2] != ["exp", "avg"] and words[:1] != ["n"]


def _unwrapped(entry: Entry) -> Entry:
    return replace(entry, state=_plain_names(entry.state))


def _plain_names(state: State) -> State:
    """Names without those of wrappers, wherever they stand, and of the module that contains the whole network."""
    short = {".".join(part for part in key.split(".") if part not in _WRAPPERS): one for key, one in state.items()}
    if len(short) == len(state):
        state = short
    while state and len(firsts := {key.split(".")[0] if "." in key else "" for key in state}) == 1:
        first = firsts.pop()
        if first not in _OUTER:
            break
        state = {key.removeprefix(f"{first}."): one for key, one in state.items()}
    return state


def _join(*parts: str) -> str:
    return ".".join(part for part in parts if part)


# --- which of them ---


def recognised(state: Mapping[str, Tensor]) -> list[str]:
    """The layouts that a state may have; none where it is of none."""
    return list(_recognised(tuple((key, tuple(one.shape)) for key, one in state.items())))


@lru_cache(maxsize=16)
def _recognised(shapes: tuple[tuple[str, tuple[int, ...]], ...]) -> tuple[str, ...]:
    try:
        return tuple(candidates(dict(shapes)))
    except (ValueError, IndexError):
        return ()


def _networks(entries: Sequence[Entry]) -> list[Entry]:
    """Those of a known layout and those without names, if there is one of a known layout; else all."""
    known = [entry for entry in entries if entry.state and recognised(entry.state)]
    return [entry for entry in entries if entry in known or entry.listed] if known else list(entries)


def _different(entries: Sequence[Entry]) -> list[Entry]:
    """Without those that repeat another's tensors."""
    kept: list[Entry] = []
    for entry in entries:
        if not (entry.state and any(_equal(entry.state, one.state) for one in kept)):
            kept.append(entry)
    return kept


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(
        one[key].shape == other[key].shape
        and one[key].dtype == other[key].dtype
        and torch.equal(one[key], other[key])
        for key in one
    )


def _main(entries: Sequence[Entry]) -> Entry | None:
    """The one that is named as the model is."""
    for name in _MODEL:
        for entry in entries:
            if entry.name == name:
                return entry
    return None


def _only(entries: Sequence[Entry], kind: str) -> Entry:
    """The one entry, or the model's where the others are of other networks. ValueError where several are alike."""
    main = _main(entries) if kind == "model" else None
    if main is not None:
        entries = [main, *(one for one in entries if one is not main and _alike(one.state, main.state))]
    if len(entries) > 1:
        names = [entry.name or "its own tensors" for entry in entries]
        what = (
            "averaged sets of weights" if kind == "ema" else "sets of weights of which none is named as the average"
        )
        raise ValueError(
            f"has {len(entries)} {what}: {', '.join(names[:12])}; choose one: weights={entries[0].name!r} "
            f"(--weights {entries[0].name})"
        )
    return entries[0]


def _alike(one: State, other: State) -> bool:
    """Whether two states are of one network: most of the names are the same."""
    return 2 * len(one.keys() & other.keys()) > len(other)


def _has_none(kind: str, averaged: Sequence[Entry], own: Sequence[Entry]) -> str:
    names = [entry.name for entry in (*averaged, *own) if entry.name]
    if not names:
        return f"is a bare state with one set of weights: leave weights ({kind}) out"
    return f"has no {kind} weights, it has {', '.join(names[:_SHOWN])}: choose one of those"


def _finished(entry: Entry, state: State | None = None, notes: Iterable[str] = ()) -> Chosen:
    if entry.others:
        raise ValueError(
            f"mixes tensors with other things ({', '.join(entry.others[:_SHOWN])}); save its state alone"
        )
    left_out = [f"left out, no weights of the network: {', '.join(entry.left_out[:20])}"] if entry.left_out else []
    return Chosen(entry.name, entry.state if state is None else state, (*notes, *left_out), entry.betas)


# --- an average and its model ---

_CHANGES: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: name.replace(".", ""),  # LitEma
    lambda name: name.replace(".", "_"),  # OpenMMLab
)


def _average(entry: Entry, own: Sequence[Entry]) -> Chosen:
    """Averaged weights under the model's names, with the model's tables where they have none."""
    model = _model_of(entry, own)
    if not entry.state and not entry.listed:
        raise ValueError(f"has no tensors in {entry.name}, where averaged weights would stand; {_OWN}")
    if entry.listed:
        return _finished(entry, *_by_order(entry, model))
    state = entry.state if model is None else _by_name(entry.state, model.state)
    if model is None or (not state.keys() & model.state.keys() and recognised(state)):
        return _finished(entry)
    missing = [key for key in model.state if key not in state]
    fixed = tables(model.state)
    lost = [key for key in missing if key not in fixed and _placed(key, recognised(model.state))]
    if lost:
        raise ValueError(
            f"has averaged weights in {entry.name} that lack {len(lost)} of the {len(model.state)} tensors of "
            f"{model.name or 'the model'}, such as {', '.join(lost[:4])}; {_OWN}"
        )
    for key, one in model.state.items():
        if key in state and state[key].shape != one.shape:
            raise ValueError(
                f"has {key} as {tuple(state[key].shape)} in {entry.name} and as {tuple(one.shape)} in "
                f"{model.name or 'the model'}; {_OWN}"
            )
    missing = [key for key in missing if key in fixed]
    completed = {key: model.state[key] for key in missing}
    notes = (
        [f"not averaged, so taken from {model.name or 'the model'}: {', '.join(missing[:8])}"] if missing else []
    )
    return _finished(entry, {**state, **completed}, notes)


_OWN = "the model's own weights are read with weights='model' (--weights model)"


def _placed(key: str, layouts: Sequence[str]) -> bool:
    """Whether a tensor has a place in a network of these layouts; of an unknown network every tensor has."""
    rules = [rule for name in layouts for rule in LAYOUTS[name].rules]
    return not rules or any(re.fullmatch(rule.pattern, key) for rule in rules)


def _model_of(entry: Entry, own: Sequence[Entry]) -> Entry | None:
    """The entry that this one is an average of."""
    base = [word for word in _words(entry.name) if not _EMA.fullmatch(word)]
    for one in own:
        if _words(one.name) == base:
            return one
    if entry.listed:
        return _main(own) or (own[0] if len(own) == 1 else None)
    near = [one for one in own if _by_name(entry.state, one.state).keys() & one.state.keys()]
    return _main(near) or (near[0] if near else _main(own) or (own[0] if len(own) == 1 else None))


def _by_name(average: State, model: State) -> State:
    """The average under the model's names, where a published program writes them otherwise; else as it is."""
    for change in _CHANGES:
        names = {change(key): key for key in model}
        for outer in ("", *_OUTER, *(f"model{one}" for one in _OUTER), *(f"{one}_" for one in _OUTER)):
            if len(names) == len(model) and all(key.removeprefix(outer) in names for key in average):
                return {names[key.removeprefix(outer)]: one for key, one in average.items()}
    return average


def _by_order(entry: Entry, model: Entry | None) -> tuple[State, list[str]]:
    """Tensors without names under the names of the model's parameters, which they follow in order."""
    shapes = [one.shape for one in entry.listed]
    if model is not None:
        fixed = tables(model.state)
        frozen = frozenset(key for key in fixed if key.endswith(".W"))  # parameters that are not trained
        for leave_out in (frozenset(), fixed, fixed - frozen):
            trained = [key for key in model.state if key not in leave_out]
            if [model.state[key].shape for key in trained] == shapes:
                state = {**model.state, **dict(zip(trained, entry.listed, strict=True))}
                notes = [f"not averaged, so taken from {model.name}: {', '.join(sorted(leave_out)[:8])}"]
                return state, notes if leave_out else []
    whose = f"{len(model.state)} tensors of {model.name}" if model is not None else "the tensors of a model"
    raise ValueError(
        f"has averaged weights in {entry.name} without names, {len(entry.listed)} tensors whose number and shapes "
        f"are not those of the {whose}; {_OWN}"
    )


def tables(state: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of tensors that are not trained, so that averages may leave them out: tables, indices, frequencies."""
    names = recognised(state)
    rules = [rule for name in names or LAYOUTS for rule in LAYOUTS[name].rules if rule.target is None]
    return frozenset(
        key
        for key, one in state.items()
        if not one.is_floating_point()
        or re.fullmatch(r"all_modules\.\d+\.W", key)
        or any(re.fullmatch(rule.pattern, key) for rule in rules)
    )
