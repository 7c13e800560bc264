"""`dinit recipe`: from a folder to a trained run, and its mistakes."""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import dinit
from dinit.cli import main
from dinit.training import load_recipe

RNG = np.random.default_rng(0)
RECIPES = Path(dinit.__file__).parent / "recipes"


@pytest.fixture(autouse=True)
def _in_an_empty_folder_on_an_idle_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 0.1, 0.1))


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def photos(root: str, classes: tuple[str, ...] = ("cat", "dog"), count: int = 24, side: int = 12) -> Path:
    for name in classes:
        (Path(root) / name).mkdir(parents=True)
        for k in range(count):
            Image.fromarray(RNG.integers(0, 256, (side, side + 4, 3)).astype(np.uint8)).save(
                f"{root}/{name}/{k}.png"
            )
    return Path(root)


def test_a_folder_with_odd_files_to_a_trained_run(capsys) -> None:
    root = photos("my photos")
    whole = Image.fromarray(RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8))
    whole.save(root / "cat" / "cut.jpg")
    content = (root / "cat" / "cut.jpg").read_bytes()
    (root / "cat" / "cut.jpg").write_bytes(content[: len(content) // 2])
    (root / "dog" / "deep").mkdir()
    Image.new("RGBA", (20, 20), (250, 0, 0, 90)).save(root / "dog" / "deep" / "alpha.png")
    Image.new("L", (20, 20), 70).save(root / "dog" / "grey.png")
    Image.fromarray(np.full((20, 20), 40_000, np.uint16)).save(root / "dog" / "sixteen.png")
    (root / "dog" / ".DS_Store").write_bytes(b"\0")
    (root / "notes.txt").write_text("hello")
    (root / "rare").mkdir()
    whole.save(root / "rare" / "1.jpg")

    assert run("recipe", "my photos/", "--out", "mine.yaml", "--minutes", "0.2") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "photos/: 52 pictures, 16×12 (median), in colour, in 3 classes: cat (24), dog (27), rare (1)" in shown
    assert "measured: width 16," in shown
    assert "1 file cannot be read and will be left out (check: skip): my photos/cat/cut.jpg" in shown
    assert "fewer than 20 pictures in class rare (1)" in shown
    assert shown.endswith("→ mine.yaml next: dinit train mine.yaml")
    recipe = load_recipe("mine.yaml")
    assert (recipe.name, recipe.data.options["size"], recipe.data.options["check"]) == ("mine", 12, "skip")
    assert recipe.data.options["path"] == "my photos/"

    short = ["training.steps=20", "schedule.warmup_steps=5", "training.batch_size=8", "tracker=null"]
    assert run("train", "mine.yaml", *short, "training.sample_every=0", "training.checkpoint_every=20") == 0
    assert Path("runs/mine/pipeline/model_index.json").exists()
    index = yaml.safe_load(Path("runs/mine/pipeline/model_index.json").read_text(encoding="utf-8"))
    assert index["class_names"] == ["cat", "dog", "rare"]

    before = Path("mine.yaml").read_bytes()
    assert run("recipe", "my photos", "--out", "mine.yaml", "--no-measure") == 2
    assert "mine.yaml exists; take another --out, or --overwrite it" in " ".join(capsys.readouterr().err.split())
    assert Path("mine.yaml").read_bytes() == before
    assert run("recipe", "my photos", "--out", "mine.yaml", "--no-measure", "--overwrite", "--size", "8") == 0
    assert load_recipe("mine.yaml").data.options["size"] == 8


def test_idx_files_to_a_recipe(capsys) -> None:
    folder = Path("marks.v1")
    folder.mkdir()
    images = np.zeros((60, 16, 16), np.uint8)
    images[:, 3:12, 3:5] = images[:, 10:12, 3:11] = 255  # an L: it faces one way
    labels = (np.arange(60) % 3).astype(np.uint8)
    for name, kind, array in (("images-idx3", 8, images), ("labels-idx1", 8, labels)):
        head = struct.pack(">HBB", 0, kind, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / f"train-{name}-ubyte").write_bytes(head + array.tobytes())
    assert run("recipe", "idx:path=marks.v1,split=train", "--no-measure") == 0
    assert "60 pictures, 16×16 (median), grey, in 3 classes: 0 (20), 1 (20), 2 (20)" in capsys.readouterr().out
    recipe = load_recipe("marks.yaml")
    assert recipe.data.spec() == {
        "name": "idx", "path": "marks.v1", "split": "train", "horizontal_flip": False,
    }  # fmt: skip
    assert (recipe.name, recipe.training.workers) == ("marks", 0)


def test_a_busy_machine_is_not_measured(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    photos("pets")
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.1, 0.1))
    assert run("recipe", "pets") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "keep this machine busy (a load of 1000 on" in shown
    assert "measured: " not in shown
    assert "the time of a step is an estimate" in Path("pets.yaml").read_text(encoding="utf-8").replace("\n# ", " ")


def test_latents_are_encoded_first(capsys) -> None:
    photos("pets", side=300)
    assert run("recipe", "pets", "--size", "256", "--vae", "my/vae", "--no-measure", "--device", "cpu") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "next: dinit encode my/vae --data folder:path=pets,size=256 --out pets-latents" in shown
    assert shown.endswith("then: dinit train pets.yaml")
    assert yaml.safe_load(Path("pets.yaml").read_text(encoding="utf-8"))["data"] == {
        "name": "latents", "path": "pets-latents",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/"], "there is no folder nowhere/"),
        (["nowhere"], "there is no folder nowhere, and no data set of that name"),
        (["folder:path=nowhere"], "there is no folder nowhere"),
        (["empty"], "no sub-folders; wanted: one sub-folder a class"),
        (["flat"], "images but no sub-folders"),
        (["texts"], "no images in class 'a'"),
        (["flat/1.png"], "is a file; give the folder"),
        (["pets", "--out", "mine"], "--out must end in .yaml, got mine"),
        (["pets", "--out", "-"], "--out must be the name of a file or folder, got '-'"),
        (["pets", "--minutes", "0"], "--minutes must be positive, got 0"),
        (["pets", "--size", "30"], "--size must be a multiple of 4, at least 8, got 30"),
        (["digits", "--size", "32"], "--size is for folders; the pictures of digits are 8×8"),
        (["idx:path=empty"], "no IDX file of the images"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys) -> None:
    photos("pets", count=2)
    Path("empty").mkdir()
    Path("texts/a").mkdir(parents=True)
    Path("texts/a/1.txt").write_text("hello")
    Path("flat").mkdir()
    Image.new("L", (9, 9)).save("flat/1.png")
    assert run("recipe", *arguments, "--no-measure") == 2
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not list(Path().glob("*.yaml"))


@pytest.mark.parametrize("name", ["own-images-32", "own-images-64", "own-images-256-latent"])
def test_shipped_examples_have_a_reason_for_every_key(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    keys = [line for line in text.splitlines() if re.match(r" *[\w-]+:", line)]
    assert len(keys) > 35
    assert [line for line in keys if not re.search(r"# \S", line)] == []
