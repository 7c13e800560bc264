"""Key maps: every key is placed, dropped by name, or refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dinit.checkpoints.keymap import Rule, load_mapped, map_keys

RULES = (Rule(r"table", None), Rule(r"old\.(\d+)\.(weight|bias)", r"\1.\2"))


def state() -> dict[str, torch.Tensor]:
    return {"table": torch.zeros(1), "old.0.weight": torch.ones(2, 3), "old.0.bias": torch.full((2,), 5.0)}


def test_keys_are_renamed_and_tables_dropped() -> None:
    mapped = map_keys(state(), RULES)
    assert set(mapped) == {"0.weight", "0.bias"}
    model = nn.Sequential(nn.Linear(3, 2))
    load_mapped(model, state(), RULES)
    assert torch.equal(model(torch.ones(1, 3)), torch.full((1, 2), 8.0))


def test_unknown_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 of 4 keys have no place in this model, \['old.0.weight.extra'\]"):
        map_keys({**state(), "old.0.weight.extra": torch.zeros(1)}, RULES)


def test_two_keys_for_one_place_are_refused() -> None:
    with pytest.raises(ValueError, match="'b' and another key to 'x'"):
        map_keys({"a": torch.zeros(1), "b": torch.zeros(1)}, (Rule("a|b", "x"),))


def test_missing_and_surplus_keys_are_named() -> None:
    with pytest.raises(ValueError, match=r"missing \['1.bias', '1.weight'\]"):
        load_mapped(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), state(), RULES)
    with pytest.raises(ValueError, match=r"not in the model \['0.bias'\]"):
        load_mapped(nn.Sequential(nn.Linear(3, 2, bias=False)), state(), RULES)


def test_wrong_shape_is_named() -> None:
    with pytest.raises(ValueError, match=r"0.weight has shape \(2, 3\) in the checkpoint and \(2, 4\)"):
        load_mapped(nn.Sequential(nn.Linear(4, 2)), state(), RULES)


def test_all_that_does_not_fit_is_told_at_once() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="does not fit this Sequential") as caught:
        load_mapped(model, {**state(), "else": torch.zeros(1), "old.7.bias": torch.zeros(1)}, RULES)
    told = str(caught.value)
    for part in ("['else']", "missing ['1.bias', '1.weight']", "not in the model ['7.bias']", "(2, 3)", "(2, 4)"):
        assert part in told


def test_of_very_many_names_the_first_are_told() -> None:
    many = {f"stranger.{i}": torch.zeros(1) for i in range(30)}
    with pytest.raises(ValueError, match=r"30 of 30 keys.*'stranger.7'] and 22 more;"):
        map_keys(many, RULES)
