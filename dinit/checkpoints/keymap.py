"""Key maps: tables that rename a published checkpoint's tensors to dinit's names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Rule:
    """One row of a key map.

    Args:
        pattern: A regular expression for a whole key of the checkpoint.
        target: Our name for it (\\1, \\2: groups of the pattern). None drops the entry: a fixed table that our
            model computes from its configuration.
        change: A change of the tensor, such as a transposition.
    """

    pattern: str
    target: str | None
    change: Callable[[Tensor], Tensor] | None = None


KeyMap = Sequence[Rule]

_LISTED = 8  # names in a message; a checkpoint of another family has hundreds


def map_keys(state: Mapping[str, Tensor], rules: KeyMap) -> dict[str, Tensor]:
    """The state under our names. The first rule that matches a key decides.

    Raises ValueError for keys that no rule matches, and for two keys that would become one.
    """
    mapped, unknown = _map(state, rules)
    if unknown:
        raise ValueError(f"{_strangers(unknown, state)}; the checkpoint is of another family or variant")
    return mapped


def load_mapped(model: nn.Module, state: Mapping[str, Tensor], rules: KeyMap) -> None:
    """Load a foreign state into the model, strictly: every weight of the model must be given, in its shape.

    A model whose parameters are on the meta device takes the tensors themselves, so a mapped file is not copied.

    Raises one ValueError that names all keys that are unknown or missing, or whose shapes differ.
    """
    mapped, unknown = _map(state, rules)
    own = model.state_dict()
    problems = [_strangers(unknown, state)] if unknown else []
    if missing := sorted(own.keys() - mapped.keys()):
        problems.append(f"missing {names(missing)} ({len(missing)} in all)")
    if extra := sorted(mapped.keys() - own.keys()):
        problems.append(f"not in the model {names(extra)} ({len(extra)} in all)")
    shapes = [
        f"{key} has shape {tuple(mapped[key].shape)} in the checkpoint and {tuple(own[key].shape)} in the model"
        for key in sorted(own.keys() & mapped.keys())
        if mapped[key].shape != own[key].shape
    ]
    if shapes:
        problems += [*shapes[:_LISTED], *([f"and {len(shapes) - _LISTED} more"] if len(shapes) > _LISTED else [])]
    integers = [
        f"{key} is {str(mapped[key].dtype).removeprefix('torch.')} in the checkpoint, no floating-point number"
        for key in sorted(own.keys() & mapped.keys())
        if own[key].is_floating_point() and not mapped[key].is_floating_point()
    ]
    problems += integers[:_LISTED]
    if problems:
        raise ValueError(
            f"the checkpoint does not fit this {type(model).__name__}: {'; '.join(problems)}. It is of another "
            "family or size, or a part of it is lost"
        )
    if all(parameter.is_meta for parameter in model.parameters()):
        model.load_state_dict(_taken(mapped, own), strict=True, assign=True)
    else:
        model.load_state_dict(mapped, strict=True)


def _taken(mapped: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as a model's own: of its dtypes, copied only where two share memory, as tied weights do."""
    taken: dict[str, Tensor] = {}
    used: set[int] = set()
    for key, tensor in mapped.items():
        fitted = tensor.to(own[key].dtype).contiguous()
        taken[key] = fitted.clone() if fitted.data_ptr() in used else fitted
        used.add(taken[key].data_ptr())
    return taken


def names(keys: Sequence[str]) -> str:
    """A list of names, of very many only the first."""
    more = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return f"{list(keys[:_LISTED])}{more}"


def _map(state: Mapping[str, Tensor], rules: KeyMap) -> tuple[dict[str, Tensor], list[str]]:
    """The state under our names, and the keys that no rule matches."""
    mapped: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, tensor in state.items():
        rule, target = _find(key, rules)
        if rule is None:
            unknown.append(key)
        elif target is not None:
            if target in mapped:
                raise ValueError(f"the key map sends {key!r} and another key to {target!r}; correct its rules")
            mapped[target] = tensor if rule.change is None else rule.change(tensor)
    return mapped, unknown


def _strangers(unknown: Sequence[str], state: Mapping[str, Tensor]) -> str:
    return f"{len(unknown)} of {len(state)} keys have no place in this model, {names(unknown)}"


def _find(key: str, rules: KeyMap) -> tuple[Rule | None, str | None]:
    """The rule that decides about a key, and the key's new name; no rule for an unknown key."""
    for rule in rules:
        match = re.fullmatch(rule.pattern, key)
        if match:
            return rule, None if rule.target is None else match.expand(rule.target)
    return None, None
