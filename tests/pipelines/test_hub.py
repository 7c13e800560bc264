"""A saved folder opens by diffusers' own entry, and its card is one that the Hub accepts."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
import torch
from huggingface_hub import ModelCard

from dinit.checkpoints.locating import SHIPPED
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.loading import shipped

TAGS = ("unconditional-image-generation",)  # of those that the Hub knows for a pipeline


def check_card(path: Path) -> ModelCard:
    card = ModelCard.load(path)
    data = card.data.to_dict()
    assert data["library_name"] == "dinit"
    assert data["pipeline_tag"] in TAGS
    assert "diffusion" in data["tags"]
    assert all(isinstance(tag, str) for tag in data["tags"])
    return card


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    Pipeline.from_pretrained("digits-dico").save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_diffusers_own_entry_opens_a_saved_folder(saved: Path, tmp_path: Path, monkeypatch) -> None:
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    opened = diffusers.DiffusionPipeline.from_pretrained(saved, custom_pipeline=str(saved), trust_remote_code=True)
    assert type(opened) is Pipeline
    for pipe in (opened, ours := Pipeline.from_pretrained(saved)):
        pipe.set_progress_bar_config(disable=True)
    made = opened([3], steps=2, output_type="pt").images
    assert torch.equal(made, ours([3], steps=2, output_type="pt").images)


def test_our_own_entry_runs_no_code_of_the_folder(saved: Path) -> None:
    (saved / "pipeline.py").write_text("raise SystemExit")
    assert isinstance(Pipeline.from_pretrained(saved), Pipeline)


def test_a_saved_folder_has_a_card_and_keeps_its_own(saved: Path) -> None:
    card = check_card(saved / "README.md")
    assert "class-conditional" in card.data.to_dict()["tags"]
    assert "license" not in card.data.to_dict(), "the licence of the weights is not ours to say"
    (saved / "README.md").write_text("mine")
    Pipeline.from_pretrained(saved).save_pretrained(saved)
    assert (saved / "README.md").read_text() == "mine"


@pytest.mark.parametrize("name", shipped())
def test_cards_of_shipped_pipelines(name: str) -> None:
    assert check_card(SHIPPED / name / "README.md").data.to_dict()["license"] == "apache-2.0"
