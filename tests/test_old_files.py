"""Files that dinit 0.1.0 wrote before its names changed open, go on and replay the same (fixtures/format_0_1_0).

Only what a user has is imported here, so that files inside dinit may move: the command line, `Pipeline`, and the
packages' own exports. fixtures/format_0_1_0/README.md says what made each file.

Bounds. A file was made on one processor and is read on any: kernels differ by float32 rounding, which a few
steps of a small network amplify to some 1e-6 of a pixel's range. A value in the middle between two levels of 0
.. 255 may then be rounded to the other, so pictures are compared to within ONE level. An optimiser's step
divides by the size of the gradient and so amplifies rounding where that is nearly zero. Losses differed by
1.3e-7 of their size at most with kernels of other instruction sets (ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA,
MKL_ENABLE_INSTRUCTIONS) and two threads, no picture by a level; losses are compared to 1e-5, for processors of
other makers, where a wrong option, a lost state or another order of the data moves them by more than 1e-4 (one
moment of one tensor set to zero: 1.9e-4).
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from dinit import Pipeline
from dinit.cli import main
from dinit.evaluation import Report
from dinit.samplers import Evolution, SolverSearch, search_timesteps
from dinit.training import load_recipe, parse_recipe

OLD = Path(__file__).parent / "fixtures" / "format_0_1_0"
SET = ("generate", "digits-dico", "--steps", "4", "--sampler", "lms:levels=2", "--num-images", "12", "--group", "4")
SET += ("--seed", "5")
ONE = 1
LOSSES = 1e-5
SHEETS = sorted(path.stem for path in (OLD / "sheets").glob("*.png"))
RECIPES = sorted(path.stem for path in (OLD / "recipes").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_the_folder_of_old_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some files name others, relative to where they lie. Names that have changed warn; that is right here."""
    monkeypatch.chdir(OLD)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def dinit(*arguments: str | Path) -> None:
    """One command, which must succeed."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert not end.value.code, f"dinit {' '.join(map(str, arguments))} ended with {end.value.code}"


def manifest_of(path: Path) -> dict[str, Any]:
    with Image.open(path) as picture:
        return json.loads(picture.info["dinit"])


def pipeline_of(manifest: dict[str, Any]) -> tuple[str | Path, ...]:
    """Where the pipeline is now: those that are no shipped ones lay in another folder when the file was made."""
    folder = OLD / Path(manifest["pipeline"]).name
    return ("--pipeline", folder) if folder.is_dir() else ()


def first_picture(path: Path) -> np.ndarray:
    """The first image on a sheet, without the letters around it."""
    picture = manifest_of(path)["picture"]
    x, y = picture["cells"][0]
    with Image.open(path) as sheet:
        return np.asarray(sheet.convert("L").crop((x, y, x + 8 * picture["scale"], y + 8 * picture["scale"])), int)


def losses(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


def assert_same_losses(found: list[dict[str, float]], recorded: list[dict[str, float]]) -> None:
    assert [line["step"] for line in found] == [line["step"] for line in recorded]
    assert [line["loss"] for line in found] == pytest.approx([line["loss"] for line in recorded], rel=LOSSES)


def test_there_are_as_many_old_files_as_were_made() -> None:
    assert (len(SHEETS), len(RECIPES)) == (50, 12)


@pytest.mark.parametrize("name", SHEETS)
def test_a_sheet_replays(name: str) -> None:
    sheet = OLD / "sheets" / f"{name}.png"
    dinit("replay", sheet, "--tolerance", str(ONE), *pipeline_of(manifest_of(sheet)))


@pytest.mark.parametrize("name", ["restart", "unified-every-field", "unified-searched"])
def test_a_call_means_what_it_meant(name: str) -> None:
    call = json.loads((OLD / "calls.json").read_text())[name]
    pipe = Pipeline.from_pretrained(call.pop("pipeline"))
    found = np.asarray(pipe([3], **call).images[0], int)
    with Image.open(OLD / "calls" / f"{name}.png") as then:
        assert np.abs(found - np.asarray(then, int)).max() <= ONE


def test_a_folder_of_pictures_replays_whole_and_one_by_one(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = json.loads((OLD / "folder" / "manifest.json").read_text())
    for path in (OLD / "folder", OLD / "folder" / "000002.png"):
        dinit("replay", path, "--tolerance", str(ONE), *pipeline_of(manifest))
    dinit("info", OLD / "folder" / "000002.png")
    assert "deis" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_pipeline_opens_with_the_defaults_that_it_was_saved_with(name: str, tmp_path: Path) -> None:
    sheet = OLD / "sheets" / f"tiny-{name}.png"  # of a call that named the label and the steps only
    dinit("info", OLD / f"pipeline_{name}")
    dinit("generate", OLD / f"pipeline_{name}", "--labels", "3", "--steps", "4", "--out", tmp_path / "now.png")
    then, now = first_picture(sheet), first_picture(tmp_path / "now.png")
    assert then.std() > 10
    assert np.abs(then - now).max() <= ONE


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_run_that_was_stopped_goes_on_as_it_would_have(name: str, tmp_path: Path) -> None:
    run, recorded = tmp_path / "run", json.loads((OLD / f"run_{name}_resumed.json").read_text())
    shutil.copytree(OLD / f"run_{name}", run)
    dinit("train", OLD / "recipes" / f"run_{name}.yaml", "--out", run)
    now = losses(run)
    assert now[:10] == losses(OLD / f"run_{name}")
    assert_same_losses(now[10:], recorded["losses"])
    facts = json.loads((run / "pipeline" / "training.json").read_text())
    assert facts["final_loss"] == pytest.approx(recorded["final_loss"], rel=LOSSES)
    if name == "dit":  # from the stopped run's own snapshots, so that rounding of float32 is all that can differ
        dinit("ema", run, "--sigma-rel", "0.12", "--step", "10", "--to", tmp_path / "power")
        found = Pipeline.from_pretrained(tmp_path / "power").backbone.state_dict()
        expected = load_file(OLD / "run_dit_ema_0.12.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_stopped_run_still_refuses_another_recipe(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(OLD / f"run_{name}", run)
    with pytest.raises(SystemExit) as end:
        main(["train", str(OLD / "recipes" / f"run_{name}.yaml"), "--out", str(run), "optimizer.lr=1e-3"])
    assert end.value.code == 2
    assert losses(run) == losses(OLD / f"run_{name}")


def test_a_finished_set_replays_and_is_found_complete(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dinit("replay", OLD / "set", "--tolerance", str(ONE))
    dinit("replay", OLD / "set" / "images" / "00000" / "00000005.png", "--tolerance", str(ONE))
    shutil.copytree(OLD / "set", tmp_path / "set")
    capsys.readouterr()
    dinit(*SET, "--out", f"{tmp_path / 'set'}/")
    assert "0 of them made" in " ".join(capsys.readouterr().out.split())


def test_a_set_that_was_begun_goes_on_to_the_same_images(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(OLD / "set_begun", folder)
    dinit(*SET, "--out", f"{folder}/")
    assert json.loads((folder / "manifest.json").read_text())["complete"] is True
    with np.load(folder / "samples_12x8x8x1.npz") as now, np.load(OLD / "set" / "samples_12x8x8x1.npz") as then:
        assert np.abs(now["arr_0"].astype(int) - then["arr_0"]).max() <= ONE
        assert (now["arr_1"] == then["arr_1"]).all()
    for index in (3, 5):  # an image that was there, and one that was made now
        dinit("replay", folder / "images" / "00000" / f"{index:08d}.png", "--tolerance", str(ONE))


def test_a_set_that_was_begun_before_there_was_an_option_goes_on(tmp_path: Path) -> None:
    """What its manifest lacks has its default; the manifest is kept, because the images name it by its digest."""
    folder = tmp_path / "set"
    shutil.copytree(OLD / "set_begun", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["asked"]["call"]["sampler"]["warm_up"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    dinit(*SET, "--out", f"{folder}/")
    assert json.loads((folder / "manifest.json").read_text())["asked"] == manifest["asked"]
    dinit("replay", folder / "images" / "00000" / "00000005.png", "--tolerance", str(ONE))
    with pytest.raises(SystemExit) as end:  # another value is another set
        main([*SET, "--out", f"{folder}/", "--sampler", "lms:levels=3"])
    assert end.value.code == 2


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_reads_to_what_it_read_to(name: str) -> None:
    """The short text, and the whole that it was read to then, with every default, are one recipe now."""
    whole = json.loads((OLD / "recipes_read.json").read_text())[name]
    recipe = load_recipe(OLD / "recipes" / f"{name}.yaml")
    assert recipe == parse_recipe(yaml.safe_dump(whole))
    assert recipe == parse_recipe(yaml.safe_dump(recipe.to_dict()))
    lost = Counter(numbers(whole)) - Counter(numbers(recipe.to_dict()))
    assert not lost, "numbers of the recipe that are nowhere in what it is read to"


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from numbers(entry)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def test_an_old_recipe_is_tried_by_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dinit("train", OLD / "recipes" / "run_dit.yaml", "--dry-run", "--out", tmp_path / "run")
    assert capsys.readouterr().out.strip()
    assert not (tmp_path / "run").exists()


def test_reference_statistics_give_the_same_report(tmp_path: Path) -> None:
    metrics = "fid,kid,precision,inception-score,class-accuracy"
    pack = OLD / "set" / "samples_12x8x8x1.npz"
    target = tmp_path / "report.json"
    dinit(
        *("evaluate", pack, "--reference", OLD / "reference.npz", "--bootstrap", "20"),
        *("--metrics", metrics, "--json", target),
    )
    then, now = Report.read_json(OLD / "report.json").model, Report.read_json(target).model
    assert (then.count, then.metrics.keys()) == (now.count, now.metrics.keys())
    # Features are computed in float64 from the same pixels; the square root of a covariance that is not of full
    # rank amplifies their rounding to about its own square root.
    assert dict(now.metrics) == pytest.approx(dict(then.metrics), rel=1e-5, abs=1e-5)
    dinit("stats", OLD / "real.npz", "--protocol", "digits", "--out", tmp_path / "reference.npz")
    with np.load(OLD / "reference.npz") as old, np.load(tmp_path / "reference.npz") as new:
        for key in {"mu", "sigma"} & set(old.files):
            np.testing.assert_allclose(new[key], old[key], rtol=1e-6, atol=1e-9)


def test_a_cache_of_latents_is_trained_on(tmp_path: Path) -> None:
    dinit("train", OLD / "recipes" / "latents.yaml", "--out", tmp_path / "run")
    assert_same_losses(losses(tmp_path / "run"), json.loads((OLD / "latents_losses.json").read_text()))


def test_searches_are_found_in_their_files_and_not_run_again(tmp_path: Path) -> None:
    for name in ("searched_times.json", "solver_search"):
        copy = shutil.copytree if (OLD / name).is_dir() else shutil.copy
        copy(OLD / name, tmp_path / name)
    denoiser: Any = Pipeline.from_pretrained("digits-dit").denoiser([3, 5])
    noise = (torch.arange(128).reshape(2, 1, 8, 8) * 37 % 101 - 50) / 25  # caches know their noise by its bits

    def never(_: Any) -> float:
        raise AssertionError("the search is run again")

    times = search_timesteps(
        denoiser,
        "euler",
        4,
        never,
        noise=noise,
        evolution=Evolution(population=6, parents=2, generations=1),
        cache=tmp_path / "searched_times.json",
    )
    assert list(times.values) == json.loads((OLD / "searched_times.json").read_text())["times"]
    search = SolverSearch(
        population=4, generations=2, fit=1, fits=1, reference_steps=20, cache=tmp_path / "solver_search"
    )
    found = search.find(denoiser, 4, noise, key="digits-dit")
    (old,) = (OLD / "solver_search").glob("*.json")
    assert sorted(path.name for path in (tmp_path / "solver_search").iterdir()) == [old.name]
    recorded = json.loads(old.read_text())
    assert list(found.grid.values) == recorded["times"]
    assert found.error == recorded["error"]
