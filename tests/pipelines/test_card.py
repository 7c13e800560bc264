"""A model card says what its run and its reports say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dinit import Pipeline
from dinit.pipelines.runs.card import ship
from dinit.pipelines.train import train
from dinit.training import parse_recipe

RECIPE = """
name: tiny
data: {name: digits, split: train}
backbone: {name: dit, patch_size: 4, hidden_size: 16, depth: 1, num_heads: 2}
training: {steps: 3, batch_size: 4}
tracker: null
sampling: {sampler: ddim, steps: 2, guidance: {name: cfg, scale: 2.5}}
"""


def test_card_of_a_run(tmp_path: Path) -> None:
    result = train(parse_recipe(RECIPE), tmp_path / "run", progress=False)
    text = ship(result.pipeline, tmp_path / "tiny", num_samples=40)
    facts = json.loads((tmp_path / "tiny" / "training.json").read_text())
    assert text == (tmp_path / "tiny" / "README.md").read_text()
    assert "# tiny" in text
    assert f"{facts['parameters']:,} parameters" in text
    assert "3 steps, 12 images" in text
    assert "ddim, 2 steps, 2 NFE; guidance cfg 2.5" in text
    ways = [line for line in text.splitlines() if line.startswith(("| its own", "| no guidance", "| real"))]
    assert len(ways) == 3
    assert float(ways[0].split("|")[3]) > 5 * float(ways[2].split("|")[3])  # FID: three steps teach nothing
    assert (tmp_path / "tiny" / "recipe.yaml").is_file()


def test_weights_in_float16_take_half_the_space_and_open_as_float32(tmp_path: Path) -> None:
    result = train(parse_recipe(RECIPE), tmp_path / "run", progress=False)
    text = ship(result.pipeline, tmp_path / "half", num_samples=40, half=True)
    assert "of safetensors in float16, opened as float32" in text
    whole, half = (next(folder.rglob("*.safetensors")) for folder in (result.pipeline, tmp_path / "half"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    opened = Pipeline.from_pretrained(tmp_path / "half").backbone.state_dict()
    for key, value in Pipeline.from_pretrained(result.pipeline).backbone.state_dict().items():
        assert opened[key].dtype == torch.float32
        assert torch.equal(opened[key], value.half().float()), key
    large = load_file(whole)
    large[next(iter(large))].fill_(1e6)
    save_file(large, whole, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"float16 cannot hold .*; leave --half out"):
        ship(result.pipeline, tmp_path / "again", num_samples=40, half=True)
    assert not (tmp_path / "again").exists()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no training\.json"):
        ship(tmp_path, tmp_path / "out")
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(ValueError, match="is there already"):
        ship(tmp_path, tmp_path)
