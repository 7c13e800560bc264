"""`dinit train`: the folder and name of a run, what it shows, device and precision, values that follow others."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dinit.cli.app import app, main
from dinit.devices import choose_device
from dinit.pipelines.train import TrainResult
from dinit.training import RecipeError, parse_recipe

RECIPE = """\
data: digits
backbone: {name: dit, patch_size: 4, hidden_size: 8, depth: 1, num_heads: 1}
schedule: {warmup_steps: 20}
training: {steps: 100, batch_size: 8, gradient_accumulation: 8, workers: 0, log_every: 100}
tracker: null
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(RECIPE)
    Path("named.yaml").write_text(RECIPE + "name: own\n")
    Path("recipe.yaml").write_text(RECIPE)
    images = np.zeros((6, 1, 8, 8), dtype=np.uint8)
    for folder in ("photos", "moved"):
        Path(folder).mkdir()
        np.savez(f"{folder}/my pictures.npz", images=images, labels=np.arange(6) % 3)
    return tmp_path


@pytest.fixture
def trained(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `dinit train`; (folder, name of the recipe, recipe) with which training would begin."""
    seen: list[Any] = []

    def spy(recipe: Any, out: Path, **how: Any) -> TrainResult:
        seen[:] = [str(out), recipe.name, recipe]
        return TrainResult(out, out / "pipeline", recipe.training.steps, 0.125, 61.0)

    monkeypatch.setattr(importlib.import_module("dinit.pipelines.train"), "train", spy)

    def run(*arguments: str) -> Any:
        app(args=["train", *arguments], standalone_mode=False)
        return tuple(seen)

    return run


NPZ = "data={name: npz, path: 'photos/my pictures.npz', layout: nchw}"
TEXT = "npz:path=photos/my pictures.npz,layout=nchw"
NAMES = {
    "the file's name": (["mine.yaml"], "mine"),
    "the recipe's own name": (["named.yaml"], "own"),
    "a name that is given": (["named.yaml", "name=other", NPZ], "other"),
    "other data": (["mine.yaml", NPZ], "my-pictures-mine"),
    "other data by the option": (["named.yaml", "--data", TEXT], "my-pictures-own"),
    "a shipped recipe on other data": (["digits-dit", "--data", TEXT], "my-pictures-digits-dit"),
    "a shipped recipe": (["digits-dit"], "digits-dit"),
    "a name of nothing": (["recipe.yaml"], "digits"),
    "a name of nothing, other data": (["recipe.yaml", NPZ], "my-pictures"),
    "fine-tuning": (["--init-from", "digits-dit", "--data", TEXT], "my-pictures-digits-dit-finetuned"),
}


@pytest.mark.parametrize("case", NAMES)
def test_the_folder_of_a_run(case: str, trained: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, name = NAMES[case]
    assert trained(*arguments)[:2] == (f"runs/{name}", name)
    printed = capsys.readouterr()
    assert f"run: runs/{name}" in printed.err
    assert f"61 s, loss 0.1250 → runs/{name}/pipeline" in printed.out
    assert f"dinit generate runs/{name}\n" in printed.out
    assert trained(*arguments, "--out", "there")[:2] == ("there", name)


def begin(folder: str, *overrides: str) -> None:
    """A run that has trained nothing yet."""
    from dinit.training.build import make_data
    from dinit.training.run.data import write_record
    from dinit.training.run.folder import write_recipe

    Path(folder).mkdir(parents=True)
    recipe = parse_recipe(RECIPE, overrides)
    write_recipe(Path(folder), recipe)
    write_record(Path(folder), make_data(recipe))


def test_a_run_is_its_own_recipe_and_folder(trained: Any) -> None:
    begin("runs/mine", "seed=4")
    folder, _, recipe = trained("runs/mine", "training.log_every=3")
    assert (folder, recipe.seed, recipe.training.log_every) == ("runs/mine", 4, 3)


def test_moved_data_is_found_again_and_a_run_of_an_older_name_too(trained: Any) -> None:
    begin("runs/mine", NPZ)
    Path("mine.yaml").write_text(RECIPE.replace("data: digits", NPZ.replace("=", ": ", 1)))
    Path("photos").rename("gone")
    moved = "data.path=moved/my pictures.npz"
    assert trained("mine.yaml", moved)[0] == "runs/mine"
    assert trained("mine.yaml", moved, "seed=3")[0] == "runs/my-pictures-mine"
    np.savez("moved/my pictures.npz", images=np.ones((6, 1, 8, 8), np.uint8), labels=np.arange(6) % 3)
    assert trained("mine.yaml", moved)[0] == "runs/my-pictures-mine"
    begin("runs/named")
    assert trained("named.yaml")[0] == "runs/named"
    shutil.rmtree("runs/named")
    assert trained("named.yaml")[0] == "runs/own"


def test_device_and_precision(trained: Any) -> None:
    recipe = trained("mine.yaml", "--device", "cpu", "--precision", "bf16")[2]
    assert (recipe.training.device, recipe.training.precision) == ("cpu", "bf16")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "gpu7"], "device 'gpu7' cannot be used; did you mean 'cpu'"),
        (["--precision", "bf15"], "training.precision: input should be 'fp32', 'bf16' or 'fp16'"),
        (["--extend", "0"], "--extend takes the new total of steps, at least 1, got 0"),
        (["--extend", "20"], "holds no run to extend; training.steps=20 starts one"),
    ],
)
def test_what_cannot_be_used(
    arguments: list[str], message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "mine.yaml", *arguments])
    assert ended.value.code == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in shown
    assert "Traceback" not in shown
    assert not Path("runs").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_device_that_is_not_here(name: str) -> None:
    with pytest.raises(ValueError, match=rf"device '{name}' cannot be used: .*CUDA.*this machine has cpu"):
        choose_device(name)
    assert choose_device("auto") == "cpu"


def test_what_follows_fewer_steps_and_another_batch() -> None:
    with pytest.warns(UserWarning, match="schedule.warmup_steps is 1 in place of 20, a tenth of training.steps=19"):
        assert parse_recipe(RECIPE, ["training.steps=19"]).schedule.warmup_steps == 1
    assert parse_recipe(RECIPE, ["training.steps=21"]).schedule.warmup_steps == 20
    with pytest.warns(UserWarning, match="gradient_accumulation is 4 in place of 8.*batch_size=12"):
        assert parse_recipe(RECIPE, ["training.batch_size=12"]).training.gradient_accumulation == 4
    for both in (
        ["training.steps=19", "schedule.warmup_steps=20"],
        ["schedule.warmup_steps=100"],
        ["training.batch_size=12", "training.gradient_accumulation=8"],
    ):
        with pytest.raises(RecipeError, match=r"must be below|must divide"):
            parse_recipe(RECIPE, both)
    with pytest.raises(RecipeError, match="must be below"):
        parse_recipe(RECIPE.replace("steps: 100", "steps: 10"))
