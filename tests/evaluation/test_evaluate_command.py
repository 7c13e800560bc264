"""`dinit stats` and `dinit evaluate` of images made before."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dinit.cli import main
from dinit.data.digits import Digits


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = Digits("train")
    images = data.uint8_images(list(range(60))).permute(0, 2, 3, 1).numpy()
    np.savez("pack.npz", arr_0=images, arr_1=data.labels[:60])


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def test_a_pack_against_statistics(capsys: pytest.CaptureFixture) -> None:
    assert run("stats", "digits:split=test", "--out", "ref.npz", "--device", "cpu") == 0
    assert "359 images of digits" in capsys.readouterr().out
    told = ["--reference", "ref.npz", "--metrics", "fid,class-accuracy", "--bootstrap", "20", "--device", "cpu"]
    assert run("evaluate", "pack.npz", *told, "--json", "r.json", "--html", "r.html") == 0
    shown = capsys.readouterr().out
    report = json.loads(Path("r.json").read_text())
    assert "│ fid " in shown
    assert "protocol digits" in shown
    assert report["rows"][0]["metrics"].keys() == {
        "fid", "fid_low", "fid_high", "class_accuracy", "class_accuracy_low", "class_accuracy_high"
    }  # fmt: skip
    assert Path("r.html").read_text().startswith("<!doctype html>")
    assert run("stats", "digits", "--out", "ref.npz") == 2
    assert "--overwrite" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "admm"], "did you mean 'adm'"),
        (["--protocol", "clean", "--features", "digits-classifier"], "leave one of the two out"),
        (["--metrics", "fid,kidd"], "did you mean 'kid'"),
        (["--data", "digits", "--reference", "pack.npz"], "give one of them"),
        (["--reference", "none.npz"], "dinit stats"),
        (["--steps", "5"], "cannot be used with existing images"),
        (["--html", "r.htm"], "must end in .html"),
        (["--bootstrap", "3"], "at least 20"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert run("evaluate", "pack.npz", *arguments) == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in shown
    assert "Traceback" not in shown


def test_watching_needs_a_run(capsys: pytest.CaptureFixture) -> None:
    assert run("evaluate", ".", "--during-training") == 2
    assert "wanted: a run" in " ".join(capsys.readouterr().err.replace("│", " ").split())
