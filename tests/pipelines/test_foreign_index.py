"""The index and the config of a pipeline's folder that were edited: read right, or refused by file and key."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzzing import damaged, edited

from dinit.models.dit import DiT
from dinit.pipelines.generate import Pipeline

INDEX, CONFIG = "model_index.json", "backbone/config.json"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    backbone = DiT(image_size=4, in_channels=1, patch_size=2, hidden_size=8, depth=1, num_heads=1, num_classes=3)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    folder = tmp_path_factory.mktemp("folder")
    Pipeline(
        backbone,
        process={"name": "vp-discrete"},
        parameterization={"name": "eps"},
        class_names=["a", "b", "c"],
        defaults={"sampler": "ddim", "steps": 1, "guidance": ["cfg:scale=2"]},
    ).save_pretrained(folder)
    return folder


def images(folder: Path) -> torch.Tensor:
    pipe = Pipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe([1], output_type="raw").images


@pytest.fixture
def restored(folder: Path) -> Iterator[Path]:
    """The folder, whose two files are put back."""
    before = {name: (folder / name).read_bytes() for name in (INDEX, CONFIG)}
    yield folder
    for name, content in before.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize("name", [INDEX, CONFIG])
def test_edits(restored: Path, name: str) -> None:
    whole, path = (restored / name).read_bytes(), restored / name
    texts = [(what, json.dumps(tree).encode()) for what, tree in edited(8, json.loads(whole))]
    refused = 0
    for what, content in (*texts, *damaged(8, whole, 20)):
        path.write_bytes(content)
        try:
            images(restored)
        except (ValueError, OSError) as error:
            lines = str(error).splitlines()
            assert 0 < len(lines) < 16, what
            assert max(map(len, lines)) < 1000, what
            refused += 1
    assert refused > 25


CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "nothing": (INDEX, {}, "same"),
    "diffusers' own key": (INDEX, {"_diffusers_version": "9"}, "same"),
    "a whole number for a fraction": (INDEX, {"t_max": 1}, "same"),
    "no names": (INDEX, {"class_names": None}, "same"),
    "the usual range": (INDEX, {"pixel_range": [-1, 1]}, "same"),
    "a key that is misspelt": (INDEX, {"pixel_ranges": [0.0, 1.0]}, "'pixel_ranges'; did you mean 'pixel_range'?"),
    "one end of a range": (INDEX, {"pixel_range": [0.0]}, "pixel_range"),
    "a text for a number": (INDEX, {"t_max": "1.0"}, "t_max: input should be a valid number"),
    "a number for names": (INDEX, {"class_names": 3}, "class_names"),
    "numbers for names": (INDEX, {"class_names": [0, 1, 2]}, "class_names.0"),
    "too few names": (INDEX, {"class_names": ["a"]}, "1 class names for a backbone of 3 classes"),
    "a name for an autoencoder": (INDEX, {"vae": "x"}, "vae: input should be"),
    "an autoencoder of nobody": (INDEX, {"vae": ["x", None]}, "is no autoencoder of diffusers"),
    "another process": (INDEX, {"process": {"name": "vq"}}, "unknown process 'vq'"),
    "an option of the backbone that is misspelt": (
        CONFIG,
        {"mlp_ratios": 2.0},
        "'mlp_ratios'; did you mean 'mlp_ratio'",
    ),
    "a mapping for a number": (CONFIG, {"mlp_norm_eps": {"a": 1}}, "mlp_norm_eps = {'a': 1} is of another type"),
    "infinity": (CONFIG, {"mlp_norm_eps": float("inf")}, "not finite"),
    "a switch for a number": (CONFIG, {"mlp_norm_eps": True}, "of another type"),
    "an option at its default": (CONFIG, {"dropout": 0}, "same"),
}


@pytest.mark.parametrize("case", CASES)
def test_an_edit(restored: Path, case: str) -> None:
    name, edits, expected = CASES[case]
    before = images(restored)
    tree = json.loads((restored / name).read_text())
    (restored / name).write_text(json.dumps({**tree, **edits}))
    if expected == "same":
        assert torch.equal(images(restored), before)
        return
    with pytest.raises(ValueError, match=re.escape(expected)):
        images(restored)
