"""Recipes: every mistake at once, with its line, and what would be right."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import dinit
from dinit.training import Recipe, RecipeError, load_recipe, parse_recipe
from dinit.training.recipe.keys import dotted_keys
from dinit.training.recipe.shipped import shipped_recipes
from dinit.training.run.folder import RunFolderError, check_run_folder, write_recipe

GOOD = """\
data: {name: digits, split: train}
backbone: {name: dit, patch_size: 2, hidden_size: 32, depth: 1, num_heads: 4}
training: {steps: 10}
"""
RECIPES = sorted((Path(dinit.__file__).parent / "recipes").glob("*.yaml"))


def report(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides)
    return str(caught.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_shipped_recipes_are_right(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those for own pictures on a folder photos/; latents, which are not encoded here, are another data set."""
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / name / "1.png")
    stand_in = ["data=digits"] if path.stem.endswith("-latent") else []
    assert load_recipe(path, stand_in).name == path.stem


def test_shipped_recipes_are_found_by_their_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe("digits-dico") == load_recipe(Path(dinit.__file__).parent / "recipes" / "digits-dico.yaml")
    assert load_recipe("digits-dico", ["training.steps=7000"]).training.steps == 7000
    Path("digits-dico").mkdir()  # such as the folder of a run
    assert load_recipe("digits-dico").name == "digits-dico"
    Path("digits-dit").write_text(GOOD, encoding="utf-8")  # a file of that name comes first
    assert load_recipe("digits-dit").training.steps == 10


@pytest.mark.parametrize("given", ["digits-dcio", "recipes/digits-dicoo.yaml", "Digits-DiCo"])
def test_a_recipe_that_is_not_there_is_answered_with_the_nearest(given: str) -> None:
    with pytest.raises(ValueError, match=f"there is no recipe file {given}, .*; did you mean 'digits-dico'"):
        load_recipe(given)


def test_first_lines_of_shipped_recipes_name_data_size_and_time() -> None:
    summaries = shipped_recipes()
    assert list(summaries) == [path.stem for path in RECIPES]
    for name, line in summaries.items():
        assert re.search(r"\d+×\d+.*: [\d,]+ steps, [\d.]+ (minutes|hours?) on", line), f"{name}: {line}"


def test_three_mistakes_are_all_shown_with_their_lines() -> None:
    text = report(
        "data: digits\n"
        "backbone:\n"
        "  name: dicoo\n"
        "process: flow\n"
        "parameterization: epsilon\n"
        "training:\n"
        "  steps: 10\n"
        "  btach_size: 64\n"
    )
    lines = text.splitlines()
    assert lines[0] == "the recipe has 3 mistakes:"
    assert "line 3: backbone.name: unknown backbone 'dicoo'; did you mean 'dico'?" in lines[1]
    assert "line 5: parameterization" in lines[2]
    assert "singular" in lines[2]
    assert "line 8: training.btach_size: unknown key; did you mean 'batch_size'?" in lines[3]
    assert len(lines) == 4


@pytest.mark.parametrize(
    ("override", "place", "message"),
    [
        ("training.steps=0", "training.steps", "greater than 0, got 0"),
        ("training.steps='10'", "training.steps", "valid integer, got '10'"),
        ("training.steps=1.5", "training.steps", "valid integer, got 1.5"),
        ("training.batch_size=true", "training.batch_size", "valid integer, got True"),
        ("training.precision=fp8", "training.precision", "'fp32', 'bf16' or 'fp16', got 'fp8'"),
        ("optimizer.betas=[0.9]", "optimizer.betas", "required"),
        ("optimizer=fast", "optimizer", "got 'fast'"),
        ("steps=10", "steps", "did you mean 'training.steps'?"),
        ("trianing.steps=10", "trianing", "did you mean 'training'?"),
        ("data.splt=test", "data.splt", "no option 'splt'; did you mean 'split'?"),
        ("data.split=tset", "data", "train, test, all, got 'tset'"),
        ("backbone.depth=two", "backbone.depth", "valid integer, got 'two'"),
        ("backbone.image_size=16", "backbone", "image_size is 16"),
        ("backbone.num_classes=11", "backbone", "num_classes is 11"),
        ("backbone.num_heads=5", "backbone", "num_heads"),
        ("backbone.null_class=false", "backbone", "label_dropout is 0.1, which trains the null label"),
        ("backbone.preset=XXL", "backbone", "unknown dit preset 'XXL'"),
        ("process.name=vpp", "process.name", "unknown process 'vpp'"),
        ("process={name: vp, beta_min: -1}", "process", "beta_min must be positive"),
        ("time=logit", "time.name", "did you mean 'logit-normal'?"),
        ("time={name: stratified, of: stratified}", "time", "stratified"),
        ("loss.weighting={name: min-snr, gamma: 0}", "loss.weighting", "gamma must be positive"),
        ("sampling.sampler=ddimm", "sampling.sampler.name", "did you mean 'ddim'?"),
        ("sampling.guidance=cgf", "sampling.guidance.0.name", "did you mean 'cfg'?"),
        ("schedule.warmup_steps=10", "schedule.warmup_steps", "below training.steps = 10"),
        ("training.gradient_accumulation=3", "training.gradient_accumulation", "divide batch_size = 128"),
        ("tracker=tensorbord", "tracker", "did you mean 'tensorboard'?"),
        ("label_dropout=1", "label_dropout", "less than 1, got 1"),
    ],
)
def test_each_mistake_says_what_and_where(override: str, place: str, message: str) -> None:
    text = report(GOOD, override)
    assert text.startswith("the recipe has 1 mistake:")
    assert f": {place}" in text
    assert f"  override {override}: " in text or place == "data"
    assert message in text


def test_mistakes_that_hide_others_do_not() -> None:
    text = report("data: digits\ntraining: {batch_size: many}\nprocess: nope\n")
    for part in ("backbone: required", "training.steps: required", "got 'many'", "unknown process 'nope'"):
        assert part in text
    assert text.startswith("the recipe has 4 mistakes:")


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [1\n", "just words", "a: !!python/object:os.system {}"])
def test_what_is_no_recipe_is_refused(text: str) -> None:
    assert "the recipe has" in report(text)


def test_sample_grids_of_what_is_no_picture_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.zeros((4, 4, 8, 8), dtype=np.float32))
    overrides = [f"data={{name: npz, path: {tmp_path / 'data.npy'}, layout: nchw}}", "label_dropout=0"]
    assert parse_recipe(GOOD, overrides).training.sample_every == 0
    assert "need 1 or 3 channels, the data has 4" in report(GOOD, *overrides, "training.sample_every=5")


def test_a_key_given_twice_is_refused() -> None:
    assert "line 5: seed: given twice, also at line 4" in report(GOOD + "seed: 1\nseed: 2\n")


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no recipe file .*none\.yaml"):
        load_recipe(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="is an empty folder, wanted: a recipe"):
        load_recipe(tmp_path)


def test_overrides_are_typed_and_nest() -> None:
    overrides = [
        "optimizer.lr=1e-4",
        "process=edm",
        "process.sigma_max=40.0",
        "parameterization=edm",
        "tracker=null",
    ]
    recipe = parse_recipe(GOOD, [*overrides, "sampling.guidance={name: cfg, scale: 2}", "data.split=all"])
    assert recipe.optimizer.lr == 1e-4
    assert recipe.process.spec() == {"name": "edm", "sigma_max": 40.0}
    assert recipe.tracker is None
    assert [guidance.spec() for guidance in recipe.sampling.guidance] == [{"name": "cfg", "scale": 2}]
    assert recipe.data.spec() == {"name": "digits", "split": "all"}


def test_written_recipe_reads_back_equal() -> None:
    recipe = parse_recipe(GOOD, ["sampling.guidance={name: cfg, scale: 2.0}", "optimizer.eps=1e-9"])
    assert parse_recipe(yaml.safe_dump(recipe.to_dict())) == recipe


def test_dotted_keys_name_the_settings() -> None:
    keys = dotted_keys()
    assert {"training.steps", "loss.weighting", "optimizer.lr", "sampling.sampler"} <= set(keys)


def test_run_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    recipe = parse_recipe(GOOD)
    check_run_folder(tmp_path / "new", recipe, resume=True)
    check_run_folder(tmp_path, recipe, resume=True)
    write_recipe(tmp_path, recipe)
    check_run_folder(tmp_path, recipe, resume=True)
    check_run_folder(tmp_path, parse_recipe(GOOD, ["training.log_every=1", "tracker=null"]), resume=True)
    with pytest.raises(RunFolderError, match=r"optimizer.lr: 0.001 there, 0.5 now"):
        check_run_folder(tmp_path, parse_recipe(GOOD, ["optimizer.lr=0.5"]), resume=True)
    with pytest.raises(RunFolderError, match="resuming was turned off"):
        check_run_folder(tmp_path, recipe, resume=False)


def test_foreign_folder_and_file_are_refused(tmp_path: Path) -> None:
    recipe: Recipe = parse_recipe(GOOD)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunFolderError, match="holds no run of dinit; nothing was written"):
        check_run_folder(tmp_path, recipe, resume=True)
    with pytest.raises(RunFolderError, match="is a file"):
        check_run_folder(tmp_path / "thesis.txt", recipe, resume=True)
