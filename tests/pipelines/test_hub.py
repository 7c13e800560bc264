"""Every saved folder has a card that the Hub accepts, is uploaded as it is, and opens by diffusers' own entry."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils import dynamic_modules_utils, hub_utils
from huggingface_hub import ModelCard, metadata_load

from dinit.cards import CARD, CardMetadata, set_license, write_card
from dinit.checkpoints.locating import SHIPPED
from dinit.evaluation.features.digits_classifier import DigitsClassifier
from dinit.models.dit import DiT
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.hub import converted_card, data_names
from dinit.pipelines.loading import shipped
from dinit.pipelines.train import train
from dinit.training import parse_recipe

# Of those that the Hub lists, https://huggingface.co/docs/hub/model-cards; ours to use.
TASKS = ("unconditional-image-generation", "image-classification", "image-to-image")
LICENSES = ("apache-2.0", "unknown", "mit", "cc-by-4.0")


def check_card(path: Path) -> dict[str, Any]:
    """The metadata, checked as far as that goes without the Hub."""
    text = path.read_text(encoding="utf-8")
    assert text.startswith("---\n")
    data = ModelCard.load(path).data.to_dict()
    assert data == metadata_load(path)
    assert data["library_name"] == "dinit"
    assert data["pipeline_tag"] in TASKS
    assert data["license"] in LICENSES
    for key in ("tags", "datasets", "metrics"):
        assert all(isinstance(word, str) and word for word in data.get(key, []))
        assert data.get(key) != []
    assert "/" in data.get("base_model", "a/b")
    return data


def tiny(**options: Any) -> Pipeline:
    backbone = DiT(image_size=4, in_channels=1, patch_size=2, hidden_size=8, depth=1, num_heads=1, **options)
    return Pipeline(
        backbone,
        process={"name": "vp-discrete"},
        parameterization={"name": "eps"},
        defaults={"sampler": "ddim", "steps": 2, "guidance": []},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny(num_classes=3).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))


ENTRIES: Any = diffusers

WAYS: dict[str, Callable[[Path], Any]] = {
    "trusted": lambda folder: ENTRIES.DiffusionPipeline.from_pretrained(folder, trust_remote_code=True),
    "by another class": lambda folder: ENTRIES.DDPMPipeline.from_pretrained(folder, trust_remote_code=True),
    "by the folder": lambda folder: ENTRIES.DiffusionPipeline.from_pretrained(
        folder, custom_pipeline=str(folder), trust_remote_code=True
    ),
    "by dinit": Pipeline.from_pretrained,
}


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("way", WAYS)
def test_diffusers_own_entry_opens_a_saved_folder(saved: Path, way: str) -> None:
    made = []
    for pipe in (WAYS[way](saved), Pipeline.from_pretrained(saved)):
        assert type(pipe) is Pipeline
        pipe.set_progress_bar_config(disable=True)
        made.append(pipe([2], output_type="pt").images)
    assert torch.equal(*made)


@pytest.mark.usefixtures("modules")
@pytest.mark.parametrize("entry", ["DiffusionPipeline", "DDPMPipeline", "DiTPipeline"])
def test_diffusers_says_that_dinit_is_needed(saved: Path, entry: str) -> None:
    with pytest.raises(ValueError, match=r"dinit_pipeline\.py"):
        getattr(ENTRIES, entry).from_pretrained(saved)
    assert "needs dinit" in (saved / "dinit_pipeline.py").read_text()


def test_our_own_entry_runs_no_code_of_the_folder(saved: Path) -> None:
    for file in saved.glob("*.py"):
        file.write_text("raise SystemExit")
    assert isinstance(Pipeline.from_pretrained(saved), Pipeline)


def test_an_index_of_0_1_0_opens(saved: Path) -> None:
    index = json.loads((saved / "model_index.json").read_text())
    (saved / "model_index.json").write_text(json.dumps({**index, "_class_name": "Pipeline"}))
    assert Pipeline.from_pretrained(saved).num_classes == 3
    (saved / "model_index.json").write_text(json.dumps({**index, "_class_name": ["other", "Pipeline"]}))
    with pytest.raises(ValueError, match="not of a dinit Pipeline"):
        Pipeline.from_pretrained(saved)


def test_a_card_is_renewed_until_it_is_edited(saved: Path) -> None:
    before = (saved / CARD).read_text()
    assert "class-conditional" in check_card(saved / CARD)["tags"]
    tiny(num_classes=0).save_pretrained(saved)
    assert "unconditional" in check_card(saved / CARD)["tags"]
    (saved / CARD).write_text(before.replace("Generates images", "Generates my images"))
    tiny(num_classes=0).save_pretrained(saved)
    assert "Generates my images, 3 classes" in (saved / CARD).read_text()
    (saved / CARD).write_text("mine")
    tiny(num_classes=0).save_pretrained(saved)
    assert (saved / CARD).read_text() == "mine"


def test_the_license_is_the_users_to_give(saved: Path) -> None:
    assert check_card(saved / CARD)["license"] == "unknown"
    pipe = tiny(num_classes=3)
    pipe.save_pretrained(saved, license="mit")
    assert check_card(saved / CARD)["license"] == "mit"
    (saved / CARD).write_text((saved / CARD).read_text().replace("# DiT", "# Mine"))
    pipe.save_pretrained(saved, license="cc-by-4.0")
    assert check_card(saved / CARD)["license"] == "cc-by-4.0"
    assert "# Mine" in (saved / CARD).read_text()
    pipe.save_pretrained(saved)
    assert check_card(saved / CARD)["license"] == "cc-by-4.0"


@pytest.mark.parametrize("license", ["Apache 2.0", "", "MIT", "gpl 3", 3, "http://x"])
def test_licenses_that_are_no_identifier(license: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'apache-2\.0'"):
        tiny(num_classes=3).save_pretrained(tmp_path / "new", license=license)
    assert not (tmp_path / "new").exists()


def test_a_license_of_a_card_that_nobody_edited_leaves_it_so(tmp_path: Path) -> None:
    for text in (CardMetadata(("a",)).front_matter() + "# x\n", "# no metadata\n"):
        write_card(tmp_path, text)
        set_license(tmp_path, "mit")
        assert metadata_load(tmp_path / CARD)["license"] == "mit"  # type: ignore[index]
        write_card(tmp_path, "# renewed\n")
        assert "# renewed" in (tmp_path / CARD).read_text()
        (tmp_path / CARD).unlink()


def test_pickles_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leave it out"):
        tiny(num_classes=3).save_pretrained(tmp_path / "new", safe_serialization=False)
    assert not (tmp_path / "new").exists()


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was uploaded, and to where. `cards`: repositories that have a card."""
    caught: dict[str, Any] = {"cards": []}

    def upload_folder(**options: Any) -> str:
        caught.update(options, files=files(Path(options["folder_path"])))
        return "address"

    monkeypatch.setattr(hub_utils, "create_repo", lambda name, **_: SimpleNamespace(repo_id=name))
    monkeypatch.setattr(hub_utils, "upload_folder", upload_folder)
    monkeypatch.setattr("huggingface_hub.file_exists", lambda repo, path, **_: repo in caught["cards"])
    return caught


def test_an_upload_is_what_is_saved(saved: Path, hub: dict[str, Any]) -> None:
    pipe = Pipeline.from_pretrained(saved)
    again = saved.parent / "again"
    pipe.save_pretrained(again, license="mit")
    assert pipe.push_to_hub("me/mine", license="mit", commit_message="Hello") == "address"
    assert (hub["repo_id"], hub["commit_message"]) == ("me/mine", "Hello")
    assert hub["files"] == files(again)
    assert b"library_name: dinit" in hub["files"][CARD]
    pipe.save_pretrained(again, push_to_hub=True, repo_id="me/two", create_pr=True)
    assert (hub["repo_id"], hub["create_pr"], hub["files"]) == ("me/two", True, files(again))


def test_a_card_on_the_hub_is_kept(saved: Path, hub: dict[str, Any]) -> None:
    hub["cards"] = ["me/mine"]
    Pipeline.from_pretrained(saved).push_to_hub("me/mine")
    assert hub["files"].keys() == files(saved).keys() - {CARD}


@pytest.mark.parametrize("name", [*shipped(), "digits-classifier", "glyphs-classifier"])
def test_cards_of_what_is_shipped(name: str) -> None:
    assert check_card(SHIPPED / name / CARD)["license"] == "apache-2.0"


RECIPE = """
name: tiny
data: {name: digits, split: train}
backbone: {name: dit, patch_size: 4, hidden_size: 8, depth: 1, num_heads: 1}
training: {steps: 2, batch_size: 4, workers: 0}
tracker: null
sampling: {sampler: ddim, steps: 2}
"""


def test_cards_of_a_run(tmp_path: Path) -> None:
    made = train(parse_recipe(RECIPE), tmp_path / "first", progress=False)
    card = check_card(made.pipeline / CARD)
    assert card["datasets"] == ["digits"]
    text = (made.pipeline / CARD).read_text()
    assert "# tiny" in text
    assert "2 steps, 8 images" in text
    shutil.copytree(made.pipeline, tmp_path / "copy")
    Pipeline.from_pretrained(tmp_path / "copy").save_pretrained(tmp_path / "copy")
    assert (tmp_path / "copy" / CARD).read_text() == text, "facts of the training are not lost"
    tuning = f"{RECIPE}finetune: {{init_from: '{made.pipeline.as_posix()}', mode: lora, rank: 1}}\n"
    tuned = train(parse_recipe(tuning), tmp_path / "second", progress=False)
    for folder in (tuned.pipeline, tuned.folder / "adapter"):
        assert check_card(folder / CARD)["datasets"] == ["digits"]
    assert "lora" in check_card(tuned.folder / "adapter" / CARD)["tags"]
    assert "fine-tuned from | pipeline (lora)" in (tuned.pipeline / CARD).read_text()


def test_a_card_of_a_classifier_and_of_converted_weights(tmp_path: Path) -> None:
    classifier = DigitsClassifier.from_pretrained()
    classifier.save_pretrained(tmp_path)
    assert check_card(tmp_path / CARD)["pipeline_tag"] == "image-classification"
    for product, task in (
        (tiny(num_classes=3), TASKS[0]),
        (classifier, TASKS[1]),
        (torch.nn.Linear(1, 1), TASKS[2]),
    ):
        (tmp_path / CARD).write_text(converted_card(product, "a.pt", "ema"))
        assert check_card(tmp_path / CARD)["pipeline_tag"] == task
        assert "`a.pt`, its ema weights" in (tmp_path / CARD).read_text()


NAMES = {
    "digits": ({"name": "digits", "split": "train"}, ["digits"]),
    "a folder": ({"name": "folder", "path": "/home/me/my photos", "size": 8}, ["my photos"]),
    "an id": ({"name": "hf", "path": "owner/name", "size": 8}, ["owner/name"]),
    "a file": ({"name": "npz", "path": "x/images.npz"}, ["images.npz"]),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_of_data(case: str) -> None:
    spec, names = NAMES[case]
    assert data_names(spec) == names
    words = CardMetadata((), datasets=names).front_matter()
    assert "my-photos" in words if case == "a folder" else names[0] in words


@pytest.mark.parametrize("base", ["digits-dit", "/home/me/x", "a/b/c", "owner/na me", ""])
def test_a_base_model_is_an_id_of_the_hub(base: str) -> None:
    assert "base_model" not in CardMetadata((), base_model=base).front_matter()
    assert "base_model: owner/name" in CardMetadata((), base_model="owner/name").front_matter()
