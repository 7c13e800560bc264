"""Key maps: how the names in a foreign checkpoint become the names in ours, as a table and not as code."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Rule:
    """`pattern`, a regular expression for a whole foreign key, becomes `target` (\\1, \\2: its groups).

    A target of None drops the entry: a fixed table that our model computes from its configuration. change: what
    is done to the tensor on the way, such as a transposition.
    """

    pattern: str
    target: str | None
    change: Callable[[Tensor], Tensor] | None = None


KeyMap = Sequence[Rule]


def map_keys(state: Mapping[str, Tensor], rules: KeyMap) -> dict[str, Tensor]:
    """The state under our names. The first rule that matches a key decides.

    Raises ValueError for keys that no rule knows, and for two keys that would become one.
    """
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
    if unknown:
        raise ValueError(
            f"{len(unknown)} of {len(state)} keys have no place in this model, first {unknown[0]!r}; "
            "the checkpoint is of another family or variant"
        )
    return mapped


def load_mapped(model: nn.Module, state: Mapping[str, Tensor], rules: KeyMap) -> None:
    """Load a foreign state into the model, strictly: every weight of the model must be given, in its shape.

    Raises ValueError that names the first key that is unknown or missing, or whose shape differs.
    """
    mapped = map_keys(state, rules)
    own = model.state_dict()
    missing = sorted(own.keys() - mapped.keys())
    extra = sorted(mapped.keys() - own.keys())
    if missing or extra:
        raise ValueError(
            f"the checkpoint does not fit this {type(model).__name__}: missing {missing[:3]} "
            f"({len(missing)} in all), not in the model {extra[:3]} ({len(extra)} in all); compare the depths"
        )
    for key, tensor in mapped.items():
        if tensor.shape != own[key].shape:
            raise ValueError(
                f"{key} has shape {tuple(tensor.shape)} in the checkpoint and {tuple(own[key].shape)} in "
                f"this {type(model).__name__}; build it with the checkpoint's sizes"
            )
    model.load_state_dict(mapped, strict=True)


def _find(key: str, rules: KeyMap) -> tuple[Rule | None, str | None]:
    """The rule that decides about a key, and the key's new name; no rule for an unknown key."""
    for rule in rules:
        match = re.fullmatch(rule.pattern, key)
        if match:
            return rule, None if rule.target is None else match.expand(rule.target)
    return None, None
