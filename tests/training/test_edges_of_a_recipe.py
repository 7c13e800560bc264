"""Whose word counts for a backbone: the recipe's own options, then the data's shape, then the preset."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dinit.data import DATASETS
from dinit.models.base import BACKBONES
from dinit.training import parse_recipe
from dinit.training.build import backbone_options, make_backbone

DIGITS = DATASETS.create("digits")
OF_DATA = {"image_size": 8, "in_channels": 1, "num_classes": 10}


@pytest.mark.parametrize("name", BACKBONES.names())
def test_options_win_over_the_data_over_the_preset(name: str) -> None:
    for preset, own in BACKBONES[name].presets.items():
        field, other = next((key, value) for key, value in own.items() if key not in OF_DATA)
        changed = (
            not other if isinstance(other, bool) else [3] if not isinstance(other, (int, float)) else other + 1
        )
        text = f"data: digits\nbackbone: {{name: {name}, preset: {preset!r}}}\ntraining: {{steps: 1}}\n"
        plain = _options(text)
        assert plain == {**own, **OF_DATA}
        assert _options(text, {field: changed, "dropout": 0.25}) == {**plain, field: changed, "dropout": 0.25}


def _options(text: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    from dinit.training.recipe.model import Recipe
    from dinit.training.recipe.yaml import read_yaml

    data = read_yaml(text).data
    data["backbone"] |= more or {}
    return backbone_options(Recipe.model_validate(data).backbone, DIGITS)


def test_a_recipe_makes_the_backbone_that_it_describes() -> None:
    recipe = parse_recipe("data: digits\nbackbone: {name: dit, preset: tiny, depth: 1}\ntraining: {steps: 1}\n")
    with torch.device("meta"):
        config: Any = make_backbone(recipe, DIGITS).config
    assert (config["depth"], config["hidden_size"], config["num_classes"]) == (1, 32, 10)
