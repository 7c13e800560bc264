"""Finding pipelines and refusing broken ones, each for its reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dinit.checkpoints import locating
from dinit.models.base import BACKBONES
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.loading import check_folder, locate, shipped

WEIGHTS = "backbone/diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = BACKBONES["dit"].preset("tiny")
    process, parameterization = {"name": "flow"}, {"name": "velocity"}
    Pipeline(network, process, parameterization).save_pretrained(tmp_path / "whole")
    return tmp_path / "whole"


def edit_index(folder: Path, **changes) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


def rename_one(weights: dict) -> None:
    weights["foreign.weight"] = weights.pop(
        "head.linear.weight" if "head.linear.weight" in weights else min(weights)
    )


def reshape_one(weights: dict) -> None:
    name = min(weights)
    weights[name] = torch.zeros(*weights[name].shape, 2)


def truncate(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def pickle_instead(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save({}, folder / "backbone" / "diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model_index.json").unlink(), "model_index.json is missing"),
        (lambda f: (f / "model_index.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "model_index.json").write_text("[]"), "must hold a JSON object"),
        (lambda f: edit_index(f, _class_name="DiTPipeline"), "class 'DiTPipeline', not of a dinit Pipeline"),
        (lambda f: edit_index(f, process=None), "has no 'process'"),
        (
            lambda f: edit_index(f, backbone=["os", "DiTT"]),
            "unknown backbone class 'DiTT'; did you mean 'DiT'",
        ),
        (lambda f: (f / "backbone/config.json").unlink(), "config.json is missing"),
        (lambda f: (f / WEIGHTS).unlink(), "diffusion_pytorch_model.safetensors is missing"),
        (lambda f: (f / WEIGHTS).write_bytes(b"not weights at all"), "damaged or no safetensors file"),
        (truncate, "damaged or no safetensors file"),
        (pickle_instead, "holds pickled weights (diffusion_pytorch_model.bin), which can run code"),
        (lambda f: edit_weights(f, rename_one), "1 unexpected: foreign.weight"),
        (lambda f: edit_weights(f, rename_one), "1 missing: "),
        (lambda f: edit_weights(f, reshape_one), "1 of another shape: "),
    ],
)
def test_a_broken_folder_is_refused_by_name(folder: Path, damage, message: str) -> None:
    check_folder(folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        Pipeline.from_pretrained(folder)
    assert message in str(caught.value)


def test_a_component_may_be_given(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")
    network = BACKBONES["dit"].preset("tiny")
    assert Pipeline.from_pretrained(folder, backbone=network).backbone is network


def test_names_are_shipped_first_then_folders(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(locating, "SHIPPED", tmp_path)
    monkeypatch.chdir(tmp_path / "whole")
    (tmp_path / "whole" / "whole").mkdir()
    assert shipped() == ["whole"]
    assert locate("whole") == tmp_path / "whole"
    assert locate("./whole") == Path("whole")
    assert isinstance(Pipeline.from_pretrained("whole").backbone, nn.Module)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("whol", "no shipped pipeline 'whol'; did you mean 'whole'"),
        ("./nowhere/at/all", "not a hub id"),
        ("model.ckpt", "pickle checkpoint"),
        ("model.pt", "pickle checkpoint"),
    ],
)
def test_what_is_not_found_is_told_without_the_network(name, message, folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(locating, "SHIPPED", tmp_path)
    monkeypatch.setattr(locating, "_download", None)
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        locate(name)
    assert message in str(caught.value)


def test_a_hub_id_offline_says_what_was_tried(monkeypatch) -> None:
    import huggingface_hub

    def offline(repo: str, **options):
        assert options["allow_patterns"] == ["*.json", "*.safetensors", "*.md", "*.txt"]
        raise ConnectionError("cannot reach the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError) as caught:
        Pipeline.from_pretrained("someone/something")
    assert "no folder someone/something" in str(caught.value)
    assert "cannot reach the hub" in str(caught.value)
