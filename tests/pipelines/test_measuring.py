"""Evaluation of a model of own pictures, offline: by the classifier of its run, or without any features."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinit.cli import main
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.evaluation.classifier_training import ClassifierPlan, split_data, train_image_classifier
from dinit.evaluation.evaluate import EvaluationSpec
from dinit.models.dit import DiT
from dinit.pipelines.classifier import classifier_job, data_spec, train_classifier, usual_size
from dinit.pipelines.evaluate import evaluate, evaluate_samples
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.measuring import OWN_METRICS, WITHOUT_FEATURES, classifier_places, usual_features
from dinit.pipelines.statistics import write_reference

NAMES = ["left", "right", "ring"]


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DINIT_INCEPTION_WEIGHTS", str(tmp_path / "none.pth"))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder, with 12×12 pictures of three classes as its data and a pipeline that gives noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(90) % 3
    images = rng.integers(0, 60, (90, 12, 12))
    images[labels == 0, 4:8, 1:5] += 150
    images[labels == 1, 4:8, 7:11] += 150
    images[labels == 2, 1:11:9] += 150
    np.savez(tmp_path / "blobs.npz", images=images.astype(np.uint8), labels=labels)
    folder = tmp_path / "runs" / "mine"
    torch.manual_seed(0)
    backbone = DiT(image_size=12, patch_size=4, in_channels=1, hidden_size=16, depth=1, num_heads=2, num_classes=3)
    process, parameterization = PROCESSES.create("flow"), PARAMETERIZATIONS.create("velocity")
    Pipeline(backbone, process, parameterization, class_names=NAMES).save_pretrained(folder / "pipeline")
    text = (
        f"data: {{name: npz, path: {tmp_path / 'blobs.npz'}, class_names: [left, right, ring]}}\n"
        "backbone: {name: dit, patch_size: 4}\ntraining: {steps: 10}\n"
    )
    for place in (folder, folder / "pipeline"):
        (place / "recipe.yaml").write_text(text)
    return folder


def quick(spec: dict[str, Any], folder: Path, names: list[str] | None = None) -> None:
    """An untrained classifier of this data, in a folder."""
    split = split_data(spec if names is None else {**spec, "class_names": names})
    train_image_classifier(split, ClassifierPlan(1, 16, width=4)).save_pretrained(folder)


def blobs(tmp_path: Path) -> dict[str, Any]:
    return {"name": "npz", "path": str(tmp_path / "blobs.npz"), "class_names": NAMES}


def test_without_a_classifier_metrics_without_features_are_left_and_the_command_is_named(run: Path) -> None:
    report = evaluate(run / "pipeline", 12, steps=2, sampler="ddim", cuda=False)
    assert report.protocol.name == "none"
    assert set(report.model.metrics) == {
        "copies", "nearer", "nearest_ratio", "brightness", "contrast", "sharpness", "variety"
    }  # fmt: skip
    assert report.real.metrics["copies"] == 0
    assert abs(report.model.metrics["sharpness"] - 1) > abs(report.real.metrics["sharpness"] - 1)
    assert f"`dinit classifier {run / 'pipeline'}`" in report.notes[-1]
    with pytest.raises(ValueError, match=r"not at .*none\.pth.*https://.*sha256 6726825d.*dinit classifier"):
        evaluate(run / "pipeline", 12, metrics=["fid", "kid"], steps=2, cuda=False)


def test_the_classifier_of_a_run_is_found_and_its_protocol_named(run: Path, tmp_path: Path) -> None:
    trained = train_classifier(run / "pipeline", steps=20, minutes=None)
    assert trained.folder == run / "classifier"
    assert trained.job.run == run
    report = evaluate(run / "pipeline", 12, steps=2, sampler="ddim", cuda=False)
    assert report.protocol.name == f"classifier-{trained.model.hash[:8]}"
    assert {"fid", "class_accuracy", "precision", "recall", "cafd", "copies", "variety"} <= set(
        report.model.metrics
    )
    assert report.real.metrics["class_accuracy"] > report.model.metrics["class_accuracy"]
    assert classifier_places(run) == [run / "classifier"]
    assert classifier_places(run / "nowhere") == []
    assert classifier_places(run / "pipeline") == [run / "pipeline" / "classifier", run / "classifier"]
    # the pictures of the model, made before
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "made.npz", images=rng.integers(0, 255, (12, 12, 12, 1)).astype(np.uint8))
    spec = EvaluationSpec(blobs(tmp_path), str(run / "classifier"), ["fid"], cuda=False)
    assert (
        evaluate_samples(tmp_path / "made.npz", spec).protocol
        == evaluate_samples(
            tmp_path / "made.npz", EvaluationSpec(blobs(tmp_path), str(run), ["fid"], cuda=False)
        ).protocol
    )


def test_a_classifier_of_other_classes_in_a_run_is_refused(run: Path, tmp_path: Path) -> None:
    quick(blobs(tmp_path), run / "classifier", ["left", "ring", "right"])
    with pytest.raises(ValueError, match="in another order"):
        evaluate(run / "pipeline", 12, steps=2, cuda=False)
    quick(blobs(tmp_path), run / "classifier", ["left", "right", "circle"])
    with pytest.raises(ValueError, match="it has no 'ring'; it has 'circle'"):
        evaluate(run / "pipeline", 12, steps=2, cuda=False)


def test_a_classifier_is_found_by_the_data_and_its_classes(run: Path, tmp_path: Path) -> None:
    def chosen(**options: Any) -> Any:
        return usual_features(EvaluationSpec({**blobs(tmp_path), **options}), 10)[0]

    assert chosen().metrics == list(WITHOUT_FEATURES)
    quick(blobs(tmp_path), Path("classifiers") / "blobs")
    assert chosen().features.folder == Path("classifiers") / "blobs"
    assert chosen().metrics == list(OWN_METRICS)
    assert chosen(class_names=["a", "b", "c"]).metrics == list(WITHOUT_FEATURES)
    np.savez(tmp_path / "others.npz", **np.load(tmp_path / "blobs.npz"))
    assert chosen(path=str(tmp_path / "others.npz")).metrics == list(WITHOUT_FEATURES)
    data = blobs(tmp_path)
    for given in (
        {"features": "none"},
        {"protocol": "adm"},
        {"reference": "stats.npz"},
        {"dataset_name": "digits"},
    ):
        spec = EvaluationSpec(**{"dataset_name": data, **given})
        assert usual_features(spec, 10) == (spec, [])


def test_statistics_by_a_classifier_are_compared_by_it_alone(run: Path, tmp_path: Path) -> None:
    quick(blobs(tmp_path), Path("classifiers") / "blobs")
    meta = write_reference(blobs(tmp_path), "stats.npz", features=str(Path("classifiers") / "blobs"), cuda=False)
    assert meta["protocol"] == meta["features"]
    assert meta["protocol"].startswith("classifier-")
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "made.npz", images=rng.integers(0, 255, (12, 12, 12, 1)).astype(np.uint8))
    spec = EvaluationSpec(reference="stats.npz", metrics=["fid"], cuda=False)
    assert evaluate_samples(tmp_path / "made.npz", spec).protocol.name == meta["protocol"]
    train_classifier("blobs.npz", "other", steps=2, minutes=None)
    other = EvaluationSpec(reference="stats.npz", features="other", metrics=["fid"], cuda=False)
    with pytest.raises(ValueError, match="does not fit"):  # its classes are 0, 1, 2
        evaluate_samples(tmp_path / "made.npz", other)
    quick({**blobs(tmp_path)}, Path("another"))
    train_image = EvaluationSpec(reference="stats.npz", features="another", metrics=["fid"], cuda=False)
    assert evaluate_samples(tmp_path / "made.npz", train_image)  # the same seed: the same weights
    (Path("classifiers") / "blobs" / "config.json").unlink()
    with pytest.raises(ValueError, match=f"{meta['protocol']}' is not here"):
        evaluate_samples(tmp_path / "made.npz", spec)


def folder_of_pictures(root: Path, counts: dict[str, int], side: int = 20, mode: str = "RGB") -> None:
    rng = np.random.default_rng(0)
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for k in range(count):
            pixels = rng.integers(0, 80, (side, side + 4, 3)) + np.array([150, 0, 0])[(np.arange(3) + number) % 3]
            Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(root / name / f"{k}.png")


def test_a_folder_of_pictures_gives_size_colour_and_place(tmp_path: Path) -> None:
    folder_of_pictures(tmp_path / "photos", {"a": 3, "b": 2})
    job = classifier_job("photos/")
    assert job.spec == {"name": "folder", "path": "photos", "size": 20, "channels": 3, "check": "skip"}
    assert job.folder == Path("classifiers") / "photos"
    assert data_spec("photos", 16)["size"] == 16
    folder_of_pictures(tmp_path / "grey", {"a": 3, "b": 2}, mode="L")
    assert data_spec("grey")["channels"] == 1
    for sides, size in (({300: 5}, 32), ({28: 9}, 28), ({30: 5, 31: 1}, 28), ({5: 1}, 8), ({}, 8)):
        assert usual_size(Counter(sides)) == size


def cli(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return int(stopped.value.code or 0)


def test_the_command_trains_on_a_folder_with_odd_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder_of_pictures(tmp_path / "photos", {"a": 12, "b": 12, "one": 1})
    (tmp_path / "photos" / "a" / "notes.txt").write_text("hello")
    (tmp_path / "photos" / "b" / "cut.png").write_bytes((tmp_path / "photos" / "b" / "0.png").read_bytes()[:90])
    assert cli("classifier", "photos", "--steps", "60", "--device", "cpu") == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "photos: 21 pictures of 3 classes, 20×20 RGB; 4 held out (every 5th picture of each class)" in shown
    assert "held-out accuracy 100.0%" in shown
    assert "fewer than 20 pictures to train on in 'a', 'b', 'one'" in shown
    assert "→ classifiers/photos (protocol classifier-" in shown
    assert cli("classifier", "photos") == 2
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere/"], "there is no folder nowhere/"),
        (["digitz"], "did you mean 'digits'"),
        (["empty"], "has no sub-folders"),
        (["single"], "one class, 'a': there is nothing to classify"),
        (["digits", "--minutes", "0"], "--minutes must be more than 0"),
        (["digits", "--out", "full"], "holds other files than a classifier"),
        (["digits", "--steps", "0"], "--steps"),
        (["pair", "--size", "300"], "read 8 to 256"),
    ],
)
def test_mistakes(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("")
    folder_of_pictures(tmp_path / "single", {"a": 3})
    folder_of_pictures(tmp_path / "pair", {"a": 3, "b": 3})
    assert cli("classifier", *arguments) == 2
    shown = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert message in shown
    assert "Traceback" not in shown
