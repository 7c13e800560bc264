"""docs/evaluation.md: its code runs, its recipe is one, and its tables are the registries."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from dinit.evaluation import METRICS, PROTOCOLS
from dinit.training import parse_recipe

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
RECIPE = "data: digits\nbackbone: {name: dit, patch_size: 4, hidden_size: 16, depth: 1, num_heads: 2}\n"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def rows(title: str) -> set[str]:
    """The names in the first column of the table under a heading."""
    part = PAGE.split(f"## {title}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", part, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_tables_are_the_registries() -> None:
    assert rows("Metrics") == set(METRICS.names())
    assert rows("Protocols") == {*PROTOCOLS, "classifier-HASH", "none"}  # and those of `dinit classifier`


@pytest.mark.slow
def test_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("python")
    exec(compile(code, "docs/evaluation.md", "exec"), {"__name__": "__main__"})
    assert (tmp_path / "report.html").is_file()


def test_the_section_is_a_recipes() -> None:
    (section,) = blocks("yaml")
    recipe = parse_recipe(RECIPE + "training: {steps: 5}\ntracker: null\n" + section)
    assert recipe.evaluation.every == yaml.safe_load(section)["evaluation"]["every"]
