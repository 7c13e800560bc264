"""docs/training.md: every piece of a recipe on it is one that reads, and switches something on."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dinit.training import parse_recipe

PAGE = Path(__file__).parents[2] / "docs" / "training.md"
BASE = """\
data: digits
backbone: {name: dit, patch_size: 2, hidden_size: 16, depth: 12, num_heads: 2}
process: flow
parameterization: velocity
training: {steps: 10}
"""
_BLOCK = re.compile(r"^```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CELL = re.compile(r"^\|[^|]+\| `([^`|]+)` \|", re.MULTILINE)


def pieces() -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return [*_CELL.findall(text), *_BLOCK.findall(text)]


@pytest.mark.parametrize("piece", pieces())
def test_piece_reads(piece: str) -> None:
    others = [line for line in BASE.splitlines() if line.partition(":")[0] != piece.partition(":")[0]]
    assert parse_recipe("\n".join([*others, piece])) != parse_recipe(BASE)


def test_piece_of_the_page_on_fine_tuning_reads() -> None:
    (piece,) = _BLOCK.findall((PAGE.parent / "finetuning.md").read_text(encoding="utf-8"))
    recipe = parse_recipe(f"data: digits\ntraining: {{steps: 10}}\n{piece}")
    assert recipe.finetune is not None
    assert recipe.finetune.mode == "lora"


def test_no_piece_is_passed_over() -> None:
    assert len(pieces()) >= 9
