"""Statistics in files: of dinit's making, and in the layout of the ADM evaluator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fuzzing import damaged, edited
from PIL import Image

from dinit.data import epoch_order
from dinit.data.digits import Digits
from dinit.evaluation import evaluate_images
from dinit.evaluation.evaluate import EvaluationSpec
from dinit.evaluation.features.digits import DigitsExtractor
from dinit.evaluation.image_features import extract
from dinit.evaluation.metrics.frechet import frechet_distance
from dinit.evaluation.metrics.gaussian import gaussian_of
from dinit.evaluation.reference import load_reference
from dinit.evaluation.samples import is_samples, mapped, read_samples
from dinit.pipelines.evaluate import evaluate_samples
from dinit.pipelines.statistics import write_reference


@pytest.fixture(scope="module")
def stats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stats") / "digits.npz"
    write_reference({"name": "digits", "split": "test"}, path, cuda=False)
    return path


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = Digits("train")
    return data.uint8_images(list(range(120))), torch.from_numpy(data.labels[:120])


METRICS = ("fid", "sfid", "kid", "precision", "recall", "inception-score", "class-accuracy", "cafd", "fringe")


def test_statistics_in_a_file_give_the_figures_of_the_data(stats: Path, digits: tuple) -> None:
    by_file = evaluate_images(*digits, reference=stats, metrics=METRICS, cuda=False)
    by_data = evaluate_images(*digits, metrics=METRICS, cuda=False)
    assert by_file.model.metrics.keys() == by_data.model.metrics.keys()
    for key, value in by_data.model.metrics.items():
        assert by_file.model.metrics[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key
    assert not by_file.has_real
    assert by_file.protocol.reference_count == 359
    assert by_file.protocol.name == "digits"
    assert any("two halves of the reference, 179 images each" in note for note in by_file.notes)
    with pytest.raises(ValueError, match="has no row"):
        _ = by_file.real


def test_the_file_says_what_made_it(stats: Path) -> None:
    meta = load_reference(stats).meta
    assert (meta["dataset"], meta["count"], meta["protocol"]) == ("digits", 359, "digits")
    assert meta["weights"] == DigitsExtractor().weights_hash()
    assert meta["class_names"] == list("0123456789")
    features = extract(Digits("test").uint8_images(), DigitsExtractor(), cuda=False).pooled
    assert features is not None
    np.testing.assert_allclose(load_reference(stats).arrays["mu"], features.mean(0))
    np.testing.assert_allclose(load_reference(stats).arrays["sigma"], np.cov(features, rowvar=False))


def test_a_changed_file_is_refused(stats: Path, tmp_path: Path) -> None:
    with np.load(stats) as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    arrays["mu"] = arrays["mu"] * 1.001
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(ValueError, match="changed after it was made"):
        load_reference(tmp_path / "changed.npz")


def test_statistics_of_other_features_are_refused(stats: Path, digits: tuple) -> None:
    with pytest.raises(ValueError, match="made by another protocol"):
        evaluate_images(digits[0], reference=stats, features=lambda x: x.flatten(1).float(), cuda=False)


def test_what_holds_no_statistics_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], dtype=object), sigma=np.zeros(1))
    for name, message in (("other", "wanted: a .npz"), ("text", "cannot be read"), ("pickled", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            load_reference(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match="does not exist"):
        load_reference(tmp_path / "none.npz")


def adm_file(path: Path, images: torch.Tensor, **statistics: np.ndarray) -> Path:
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy(), **statistics)
    return path


def test_an_adm_batch_gives_statistics_and_neighbourhoods(tmp_path: Path, digits: tuple) -> None:
    """Statistics win over the images that lie beside them, as the published references are of more images."""
    test, extractor = Digits("test").uint8_images(), DigitsExtractor()
    found = extract(test, extractor, spatial=True, cuda=False)
    assert found.gaussian is not None
    assert found.spatial is not None
    shifted = {
        "mu": found.gaussian.mean + 1.0,
        "sigma": found.gaussian.covariance,
        "mu_s": found.spatial.mean,
        "sigma_s": found.spatial.covariance,
    }
    path = adm_file(tmp_path / "adm.npz", test, **shifted)
    features = {"name": "digits-classifier"}
    metrics = ("fid", "sfid", "precision", "kid")
    report = evaluate_images(test, reference=path, features=features, metrics=metrics, cuda=False)
    assert report.model.metrics["fid"] == pytest.approx(found.gaussian.dim)
    assert report.model.metrics["sfid"] == pytest.approx(0, abs=1e-8)
    assert report.model.metrics["precision"] == 1.0
    alone = adm_file(tmp_path / "images.npz", test)
    assert evaluate_images(
        digits[0], reference=alone, features=features, metrics=["fid"], cuda=False
    ).model.metrics["fid"] == pytest.approx(
        evaluate_images(digits[0], metrics=["fid"], cuda=False).model.metrics["fid"]
    )
    np.savez(tmp_path / "numbers.npz", **shifted)
    few = evaluate_images(test, reference=tmp_path / "numbers.npz", features=features, metrics=metrics, cuda=False)
    assert few.model.metrics.keys() == {"fid", "sfid"}
    assert sum("statistics alone" in note for note in few.notes) == 2


def test_packs_are_mapped_not_read(tmp_path: Path, digits: tuple) -> None:
    images, labels = digits
    path = tmp_path / "pack.npz"
    np.savez(path, arr_0=images.permute(0, 2, 3, 1).numpy(), arr_1=labels.numpy())
    assert isinstance(mapped(path, "arr_0"), np.memmap)
    read = read_samples(path)
    assert torch.equal(read.images[3:7], images[3:7])
    assert torch.equal(read.images[[5, 2]], images[[5, 2]])
    assert read.labels is not None
    assert torch.equal(read.labels, labels)
    np.savez_compressed(tmp_path / "small.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    assert mapped(tmp_path / "small.npz", "arr_0") is None
    assert torch.equal(read_samples(tmp_path / "small.npz").images[0:120], images)
    direct = evaluate_images(images, labels, metrics=["fid", "class-accuracy"], cuda=False)
    packed = evaluate_samples(path, EvaluationSpec(metrics=["fid", "class-accuracy"], cuda=False))
    assert packed.model.metrics == direct.model.metrics
    assert packed.model.name == "pack.npz"


def folder_of(root: Path, digits: tuple, suffix: str = "png", by_class: bool = True) -> Path:
    for k, (image, label) in enumerate(zip(*digits, strict=True)):
        place = root / (str(int(label)) if by_class else "all")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(place / f"{k:04d}.{suffix}")
    return root


@pytest.mark.slow
def test_a_folder_of_pictures_is_measured_with_its_classes(tmp_path: Path, digits: tuple) -> None:
    folder = folder_of(tmp_path / "samples", digits)
    assert is_samples(folder)
    spec = EvaluationSpec(metrics=["fid", "class-accuracy"], cuda=False)
    report = evaluate_samples(folder, spec, output=tmp_path / "r.json")
    direct = evaluate_images(*digits, metrics=["fid", "class-accuracy"], cuda=False)
    assert report.model.metrics["fid"] == pytest.approx(direct.model.metrics["fid"], rel=1e-9)
    assert report.model.metrics["class_accuracy"] == direct.model.metrics["class_accuracy"]
    assert json.loads((tmp_path / "r.json").read_text())["protocol"]["name"] == "digits"
    unlabelled = evaluate_samples(
        folder_of(tmp_path / "b", digits, by_class=False), replace(spec, metrics=["class-accuracy"])
    )
    assert any("no labels were given" in note for note in unlabelled.notes)
    lossy = evaluate_samples(folder_of(tmp_path / "c", digits, "jpg"), replace(spec, metrics=["fid"]))
    assert any("120 of 120 files are JPEG" in note for note in lossy.notes)


def test_labels_of_a_manifest_win(tmp_path: Path, digits: tuple) -> None:
    folder = folder_of(tmp_path / "set", (digits[0][:20], digits[1][:20]), by_class=False)
    labels = list(range(10)) * 2
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))
    small = {
        "pipeline": "p",
        "call": {"labels": labels, "steps": 4, "seeds": []},
        "picture": {"files": files[::-1]},
    }
    (folder / "manifest.json").write_text(json.dumps(small))
    read = read_samples(folder, "0123456789")
    assert read.labels is not None
    assert read.labels.tolist() == labels
    assert read.made_by == {"pipeline": "p", "steps": 4}
    assert torch.equal(read.images[0:20], digits[0][:20].flip(0))
    large = {"kind": "set", "complete": False, "pipeline": "p", "asked": {"call": {"labels": [*labels, 3]}}}
    (folder / "manifest.json").write_text(json.dumps(large))
    read = read_samples(folder)
    assert read.labels is None  # one image is missing: which label is whose is not known
    assert read.notes == ("the set is not complete: 20 of 21 images are there",)


def test_pictures_that_make_no_set_are_refused(tmp_path: Path, digits: tuple) -> None:
    folder = folder_of(tmp_path / "mixed", digits)
    Image.new("L", (9, 9)).save(folder / "0" / "odd.png")
    with pytest.raises(ValueError, match=r"several sizes: 120 of 8×8 .* 1 of 9×9 \(such as odd\.png\)"):
        read_samples(folder)
    (folder / "0" / "odd.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"odd\.png cannot be read as an image"):
        read_samples(folder)
    (tmp_path / "empty").mkdir()
    assert not is_samples(tmp_path / "empty")
    with pytest.raises(ValueError, match="holds no pictures"):
        read_samples(tmp_path / "empty")
    np.savez(tmp_path / "float.npz", arr_0=np.zeros((9, 8, 8, 1)))
    with pytest.raises(ValueError, match="hold uint8"):
        read_samples(tmp_path / "float.npz")


def test_statistics_of_a_folder_and_of_its_pack_are_the_same(tmp_path: Path, digits: tuple) -> None:
    folder = folder_of(tmp_path / "photos", digits)
    of_folder = write_reference(folder, tmp_path / "a.npz", features="digits-classifier", cuda=False)
    order = sorted(range(120), key=lambda k: (int(digits[1][k]), k))
    np.savez(tmp_path / "pack.npz", arr_0=digits[0][order].permute(0, 2, 3, 1).numpy())
    of_pack = write_reference(tmp_path / "pack.npz", tmp_path / "b.npz", protocol="digits", cuda=False)
    assert of_folder["fingerprint"] == of_pack["fingerprint"]
    assert of_folder["class_names"] == [str(k) for k in range(10)]
    first, second = (load_reference(tmp_path / name).arrays for name in ("a.npz", "b.npz"))
    assert np.array_equal(first["mu"], second["mu"])
    assert first["labels"].tolist() == sorted(digits[1].tolist())
    x = first["features"]
    half = epoch_order(0, 0, 120)
    exact = frechet_distance(gaussian_of(x[half[:60]]), gaussian_of(x[half[60:]]))
    assert of_folder["halves_fid"] == pytest.approx(exact)


SIZE = 72  # features of the digits' classifier
MEAN, COVARIANCE = np.zeros(SIZE), np.eye(SIZE)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": MEAN, "sigma": COVARIANCE}, None),
        ({"mu": MEAN.astype(np.float32), "sigma": COVARIANCE.astype(np.float32)}, None),
        ({"mu": MEAN.astype(int), "sigma": COVARIANCE.astype(int)}, None),
        ({"mu": MEAN, "sigma": COVARIANCE, "meta": np.array("{}")}, None),
        ({"mu": MEAN, "sigma": COVARIANCE, "meta": np.array("[1]")}, "its meta is no object"),
        ({"mu": MEAN, "sigma": COVARIANCE, "meta": np.array('{"a": 1}')}, "was changed after it was made"),
        ({"mu": np.array(["a"] * SIZE), "sigma": COVARIANCE}, "must hold real numbers, got <U1, float64"),
        ({"mu": MEAN + 1j, "sigma": COVARIANCE}, "must hold real numbers, got complex128"),
        ({"mu": MEAN[None], "sigma": COVARIANCE}, r"a mean \(D,\) and a covariance \(D, D\) are needed"),
        ({"mu": MEAN * np.nan, "sigma": COVARIANCE}, "NaN or infinity"),
        ({"mean": MEAN, "cov": COVARIANCE}, "has the arrays mean, cov; wanted"),
        ({"arr_0": np.random.default_rng(0).random((9, 8, 8, 1))}, "hold uint8.*scale them to 0 .. 255"),
    ],
)
def test_statistics_of_other_programs(tmp_path: Path, digits: tuple, arrays: dict, message: str | None) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # pyright: ignore[reportArgumentType]
    spec: dict[str, Any] = {
        "reference": tmp_path / "a.npz",
        "features": "digits-classifier",
        "metrics": ["fid"],
        "cuda": False,
    }
    if message is None:
        assert evaluate_images(digits[0], **spec).model.metrics["fid"] > 1
        return
    with pytest.raises(ValueError, match=message) as caught:
        evaluate_images(digits[0], **spec)
    assert "a.npz" in str(caught.value)


def test_damaged_statistics_are_refused(stats: Path, tmp_path: Path) -> None:
    path, good = tmp_path / "a.npz", load_reference(stats)
    images = torch.zeros(9, 1, 8, 8, dtype=torch.uint8)
    arrays: dict[str, Any] = dict(good.arrays)
    refused = 0
    edits = [(what, content, None) for what, content in damaged(7, stats.read_bytes(), 30)]
    for what, content, meta in [*edits, *((what, b"", meta) for what, meta in edited(8, dict(good.meta), 30))]:
        if meta is None:
            path.write_bytes(content)
        else:
            np.savez(path, meta=np.array(json.dumps(meta)), **arrays)
        try:
            found = load_reference(path)
            assert np.array_equal(found.arrays["mu"], arrays["mu"]), what
            report = evaluate_images(images, reference=path, metrics=["kid"], cuda=False)
            assert report.protocol.reference_count == 359, what
        except (ValueError, OSError) as error:
            refused += 1
            assert len(str(error)) < 1000, what
    assert refused > 35
