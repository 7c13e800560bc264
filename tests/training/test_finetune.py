"""Starting from a pipeline: whose rows and weights a network gets, what must agree, and a run from end to end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from dinit.cli.app import app
from dinit.data.digits import Digits
from dinit.data.pixels import to_uint8
from dinit.models.base import BACKBONES, Backbone
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.train import train
from dinit.training import RecipeError, parse_recipe
from dinit.training.finetune.adapters import label_tables
from dinit.training.finetune.transfer import Transfer, data_spec, read_pretrained, start_from
from dinit.training.recipe.model import FinetuneSection
from dinit.training.run.checkpoint import list_checkpoints, load_checkpoint
from dinit.training.run.log import read_losses

RECIPE = """\
finetune: {init_from: digits-dico}
data: digits
training: {steps: 4, batch_size: 8, checkpoint_every: 2, log_every: 1, keep: 9}
ema: {decay: 0.5}
tracker: null
"""
NAMES = ["7", "cat", "3", "dog"]


@pytest.fixture(scope="module")
def pretrained() -> Backbone:
    return Pipeline.from_pretrained("digits-dico").backbone.eval()


def started(**options: Any) -> tuple[Backbone, Transfer]:
    torch.manual_seed(0)
    settings = read_pretrained("digits-dico").settings()["backbone"]
    shape = {"image_size": 8, "in_channels": 1, "num_classes": len(NAMES)}
    backbone = BACKBONES.create({**settings, **shape})
    return backbone.eval(), start_from(backbone, NAMES, FinetuneSection(init_from="digits-dico", **options))


def answer(backbone: Backbone, labels: list[int]) -> Tensor:
    x = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return backbone(x, torch.full((len(labels),), 300.0), backbone.embed(torch.tensor(labels)))


def test_kept_classes_and_null_answer_as_before(pretrained: Backbone) -> None:
    """'7' and '3' are labels 0 and 2 now, 'dog' is mapped to '5', and the null label is 4 in place of 10."""
    backbone, transfer = started(classes={"dog": "5"})
    torch.testing.assert_close(
        answer(backbone, [0, 2, 3, 4]), answer(pretrained, [7, 3, 5, 10]), rtol=1e-4, atol=1e-5
    )
    assert transfer.kept == {"7": "7", "3": "3", "dog": "5"}
    assert list(transfer.new) == ["cat"]
    assert list(transfer.dropped) == ["0", "1", "2", "4", "6", "8", "9"]
    assert transfer.trained == transfer.parameters == sum(p.numel() for p in backbone.parameters())
    assert transfer.tensors == len(pretrained.state_dict()) - 3


def test_new_classes_start_as_the_mean_of_the_old_or_at_random(pretrained: Backbone) -> None:
    backbone, transfer = started()
    for name, table in label_tables(backbone).items():
        old = label_tables(pretrained)[name].weight
        torch.testing.assert_close(table.weight[1], old[:10].mean(0))
        torch.testing.assert_close(table.weight[3], old[:10].mean(0))
    assert "new classes, from the mean of the old rows: cat, dog" in transfer.lines()
    random, _ = started(new_rows="random")
    for table in label_tables(random).values():
        assert not torch.allclose(table.weight[1], table.weight[3])
        assert float(table.weight[1].detach().std()) == pytest.approx(0.02, rel=0.5)


def test_recipe_takes_what_the_pipeline_was_trained_with() -> None:
    recipe = parse_recipe(RECIPE)
    assert recipe.backbone.name == "dico"
    assert recipe.backbone.options["hidden_size"] == 16
    assert recipe.process.options["schedule"] == "cosine"
    assert recipe.parameterization.name == "v"
    assert recipe.time.name == "stratified"
    assert recipe.sampling.steps == 20
    again = parse_recipe(RECIPE, ["process={name: vp-discrete, schedule: cosine}", "backbone=dico", "t_max=1.0"])
    assert again.process.options.keys() == {"schedule"}
    assert again.backbone == recipe.backbone
    assert parse_recipe(RECIPE, ["time=uniform", "backbone.dropout=0.1"]).time.name == "uniform"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("process=flow", "process: digits-dico was trained with {'beta_end'"),
        ("parameterization=epsilon", "trained with {'name': 'v'}, and the recipe has 'epsilon'; leave it out"),
        ("backbone.hidden_size=32", "backbone.hidden_size: digits-dico has 16, and the recipe 32; leave it out"),
        ("t_max=0.9", "trained with 1.0, and the recipe has 0.9"),
        ("finetune.init_from=digits-dicoo", "did you mean 'digits-dico'?"),
        ("finetune.init_from=digits-classifier", "no shipped pipeline 'digits-classifier'"),
        ("finetune.mode=half", "finetune.mode: input should be 'full', 'difffit' or 'lora'"),
        ("finetune={init_from: digits-dico, mode: lora, targets: [qkv]}", "no layer of DiCo is called 'qkv'"),
    ],
)
def test_mistakes_are_told(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE, [override])
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 1
    with pytest.raises(RecipeError, match=r"ema\.widths: snapshots are of whole networks"):
        parse_recipe(RECIPE, ["finetune.mode=lora", "ema.widths=[0.1]"])


def test_other_images_and_unknown_classes_are_refused() -> None:
    backbone = BACKBONES["dico"](image_size=8, in_channels=3, hidden_size=16, depth=(2,) * 5, num_classes=4)  # type: ignore[call-arg]
    section = FinetuneSection(init_from="digits-dico")
    with pytest.raises(ValueError, match=r"stem.weight \[16, 1, 3, 3\] there.*1 channels and 8×8 pixels"):
        start_from(backbone, NAMES, section)
    with pytest.raises(ValueError, match=r"cat: 11 names '11', which is none of 0, 1"):
        started(classes={"cat": "11"})
    with pytest.raises(ValueError, match=r"cow: 1 names 'cow', which is none of 7, cat"):
        started(classes={"cow": "1"})


@pytest.mark.parametrize("mode", ["lora", pytest.param("difffit", marks=pytest.mark.slow)])
def test_stopped_run_goes_on_and_gives_an_ordinary_pipeline(
    mode: str, tmp_path: Path, pretrained: Backbone
) -> None:
    recipe = parse_recipe(RECIPE, [f"finetune.mode={mode}"])
    folders = [tmp_path / name for name in ("whole", "parts")]
    train(recipe, folders[0], progress=False)
    shutil.copytree(*folders)
    for path in (
        *list_checkpoints(folders[1] / "checkpoints")[-1].iterdir(),
        folders[1] / "pipeline" / "training.json",
    ):
        path.unlink()
    train(recipe, folders[1], progress=False)
    losses = [read_losses(folder / "losses.jsonl") for folder in folders]
    assert len(losses[0]) == 4
    assert losses[0] == losses[1]
    backbones = [Pipeline.from_pretrained(folder / "pipeline").backbone for folder in folders]
    states = [dict(backbone.state_dict()) for backbone in backbones]
    assert states[0].keys() == pretrained.state_dict().keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    changed = {name for name, value in pretrained.state_dict().items() if not torch.equal(value, states[0][name])}
    assert "label_embeddings.0.table.weight" in changed
    assert ("bottom.0.conv_in.weight" in changed) == (mode == "lora")
    assert ("bottom.0.conv_in.bias" in changed) == (mode == "difffit")
    assert "stem.weight" not in changed
    assert (folders[0] / "adapter" / "adapter_config.json").exists() == (mode == "lora")
    first, last = (load_checkpoint(path).model for path in list_checkpoints(folders[0] / "checkpoints"))
    frozen = "bottom.0.conv_in.base_layer.weight" if mode == "lora" else "bottom.0.conv_in.weight"
    assert torch.equal(first[frozen], last[frozen])


def digits_folder(folder: Path) -> Path:
    """Threes and sevens, by other names."""
    data = Digits("train")
    for name, digit in (("three", 3), ("7", 7)):
        (folder / name).mkdir(parents=True)
        for index in np.flatnonzero(data.labels == digit)[:12]:
            Image.fromarray(to_uint8(data.image(int(index)))[0].numpy()).save(folder / name / f"{index}.png")
    return folder


def test_command_without_a_recipe(tmp_path: Path) -> None:
    out = tmp_path / "run"
    values = ["training.steps=2", "training.sample_every=0", "tracker=null", "finetune.classes.three='3'"]
    images = digits_folder(tmp_path / "images")
    done = CliRunner().invoke(
        app, ["train", *values, "--init-from", "digits-dico", "--data", str(images), "--out", str(out)]
    )
    assert done.exit_code == 0, done.output
    pipe = Pipeline.from_pretrained(out / "pipeline")
    assert pipe.class_names == ["7", "three"]
    assert pipe.backbone.num_classes == 2
    assert "classes mapped: three from 3" in done.output
    pictures = pipe(["three"], steps=2).images
    assert pictures[0].size == (8, 8)
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (
            ["train", "digits-dico", "--data", str(tmp_path / "empty")],
            "is empty; wanted: one sub-folder of pictures",
        ),
        (["train"], "give a recipe, or --init-from PIPELINE and --data FOLDER"),
        (["train", "digits-dico", "--data", str(images)], "the size of the images is not known"),
    ):
        assert message in " ".join(str(CliRunner().invoke(app, arguments).exception).split())


def test_folder_s_shape_is_the_pipeline_s(tmp_path: Path) -> None:
    (tmp_path / "seven").mkdir()
    pipeline = read_pretrained("digits-dico")
    expected = {"name": "folder", "path": str(tmp_path), "size": 8, "channels": 1}
    assert data_spec(str(tmp_path), pipeline) == expected
    assert data_spec("glyphs:size=32", pipeline) == {"name": "glyphs", "size": 32}
