"""Choice among the sets of weights of a training checkpoint, and averages under their model's names."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinit.checkpoints.entries import (
    CHANGES,
    EMA,
    OUTER,
    Entry,
    State,
    find_entries,
    is_averaged,
    recognised,
    words_of,
)
from dinit.checkpoints.layouts import LAYOUTS

# The first of these that a checkpoint has is the model, where nothing else decides.
_MODEL = ("model", "state_dict", "model_state_dict", "net", "network", "module")
_OWN = "the model's own weights are read with weights='model' (--weights model)"
_SHOWN = 6


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
    entries = find_entries(content)
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
            f"(--weights {shlex.quote(entries[0].name)})"
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


def _placed(key: str, layouts: Sequence[str]) -> bool:
    """Whether a tensor has a place in a network of these layouts; of an unknown network every tensor has."""
    rules = [rule for name in layouts for rule in LAYOUTS[name].rules]
    return not rules or any(re.fullmatch(rule.pattern, key) for rule in rules)


def _model_of(entry: Entry, own: Sequence[Entry]) -> Entry | None:
    """The entry that this one is an average of."""
    base = [word for word in words_of(entry.name) if not EMA.fullmatch(word)]
    for one in own:
        if words_of(one.name) == base:
            return one
    if entry.listed:
        return _main(own) or (own[0] if len(own) == 1 else None)
    near = [one for one in own if _by_name(entry.state, one.state).keys() & one.state.keys()]
    return _main(near) or (near[0] if near else _main(own) or (own[0] if len(own) == 1 else None))


def _by_name(average: State, model: State) -> State:
    """The average under the model's names, where a published program writes them otherwise; else as it is."""
    for change in CHANGES:
        names = {change(key): key for key in model}
        for outer in ("", *OUTER, *(f"model{one}" for one in OUTER), *(f"{one}_" for one in OUTER)):
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
