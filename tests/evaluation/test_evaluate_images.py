from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinit.data.arrays import NpzImages
from dinit.data.digits import Digits
from dinit.data.order import epoch_order
from dinit.evaluation import EXTRACTORS, evaluate_images
from dinit.evaluation.evaluate import real_images
from dinit.evaluation.features.inception import WEIGHTS_VARIABLE, Inception
from dinit.evaluation.features.inception_network import resize_clean, resize_tensorflow
from dinit.evaluation.metrics.base import Settings, measure
from dinit.evaluation.reports.report import Report


def real(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = Digits("train")
    return data.uint8_images(list(range(count))), torch.from_numpy(data.labels[:count])


@pytest.fixture(scope="module")
def of_real() -> Report:
    return evaluate_images(*real(600), cuda=False)


def test_real_images_score_as_the_real_row_does(of_real: Report) -> None:
    model, row = of_real.model.metrics, of_real.real.metrics
    assert (of_real.model.count, of_real.real.count, of_real.protocol.reference_count) == (600, 600, 359)
    assert model["fid"] == pytest.approx(row["fid"], abs=0.1)
    assert abs(model["kid"]) < 0.02
    assert abs(row["kid"]) < 0.02
    for key in ("precision", "recall"):
        assert model[key] == pytest.approx(row[key], abs=0.08)
        assert row[key] > 0.7
    assert 7 < row["inception_score"] <= 10
    assert row["class_accuracy"] > 0.99


def test_both_rows_are_measured_against_the_test_split(of_real: Report) -> None:
    test, settings = Digits("test").uint8_images(), Settings(179, 100, 1, 3, 0)
    model = measure(real(600)[0], test, EXTRACTORS["digits-classifier"](), settings, ["fid"], cuda=False)
    assert of_real.model.metrics["fid"] == pytest.approx(model["fid"], rel=1e-9)
    train = Digits("train").uint8_images(epoch_order(0, 0, 1438)[:600].tolist())
    row = measure(train, test, EXTRACTORS["digits-classifier"](), settings, ["fid"], cuda=False)
    assert of_real.real.metrics["fid"] == pytest.approx(row["fid"], rel=1e-9)


def test_noise_scores_far_worse(of_real: Report) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (600, 1, 8, 8), generator=generator, dtype=torch.uint8)
    report = evaluate_images(noise, torch.arange(600) % 10, cuda=False)
    assert report.model.metrics["fid"] > 50 * of_real.model.metrics["fid"]
    assert report.model.metrics["kid"] > 0.5
    assert report.model.metrics["recall"] < 0.1
    assert report.model.metrics["class_accuracy"] < 0.2
    assert report.real == of_real.real  # the same images, whatever the model's are


def test_one_class_alone_shows_as_lost_recall() -> None:
    data = Digits("train")
    ones = data.uint8_images(np.flatnonzero(data.labels == 1).tolist())
    report = evaluate_images(ones, metrics=("recall", "fid"), cuda=False)
    assert report.model.metrics["recall"] < 0.3
    assert report.model.metrics["fid"] > 10 * report.real.metrics["fid"]


def test_class_accuracy_counts_the_labels_that_were_read() -> None:
    images, labels = real(200)
    wrong = labels.clone()
    wrong[:50] = (wrong[:50] + 1) % 10
    report = evaluate_images(images, wrong, metrics=["class-accuracy"], cuda=False)
    assert report.model.metrics == {"class_accuracy": pytest.approx(0.75, abs=0.006)}
    unlabelled = evaluate_images(images, metrics=["class-accuracy"], cuda=False)
    assert "class_accuracy" not in unlabelled.model.metrics
    assert "class_accuracy" in unlabelled.real.metrics
    assert any("no labels" in note for note in unlabelled.notes)


def test_the_protocol_says_how_labels_were_chosen_and_what_was_adapted(of_real: Report) -> None:
    images, _ = real(40)
    kinds = {
        "none": None,
        "balanced": torch.arange(40) % 10,
        "as given": torch.zeros(40, dtype=torch.int64),
    }
    for kind, labels in kinds.items():
        assert evaluate_images(images, labels, metrics=["fid"], cuda=False).protocol.labels == kind
    assert any("subsets of 179" in note for note in of_real.notes)
    assert "test split" in of_real.protocol.reference


def test_a_set_without_splits_is_halved_class_by_class(tmp_path: Path) -> None:
    data = Digits("test")
    np.savez(tmp_path / "a.npz", images=data.uint8_images().numpy(), labels=data.labels)
    halves = real_images({"name": "npz", "path": str(tmp_path / "a.npz")})
    assert (len(halves.train) + len(halves.test), halves.num_classes) == (359, 10)
    assert np.abs(np.bincount(halves.train_labels) - np.bincount(data.labels) / 2).max() <= 0.5
    whole = {image.numpy().tobytes() for image in data.uint8_images()}
    both = [image.numpy().tobytes() for part in (halves.train, halves.test) for image in part]
    assert set(both) == whole
    report = evaluate_images(*real(100), NpzImages(tmp_path / "a.npz"), "digits-classifier", cuda=False)
    assert report.protocol.dataset == "npz"
    assert report.model.metrics["class_accuracy"] > 0.98


IMAGES, LABELS = torch.zeros(20, 1, 8, 8, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": IMAGES.float()}, "must be uint8"),
        ({"images": IMAGES[0]}, "must be uint8 of shape"),
        ({"images": IMAGES.expand(-1, 3, -1, -1)}, r"images of digits are \(1, 8, 8\)"),
        ({"images": IMAGES[:7], "labels": None}, "at least 8"),
        ({"labels": LABELS[:3]}, r"shape \(20,\)"),
        ({"labels": LABELS + 10}, r"in 0 \.\. 9, got 10 \.\. 10"),
        ({"labels": LABELS - 1}, r"in 0 \.\. 9"),
        ({"metrics": ["fidd"]}, "did you mean 'fid'"),
        ({"features": "incepton-v3"}, "did you mean 'inception-v3'"),
        ({"dataset_name": "digit"}, "did you mean 'digits'"),
        ({"dataset_name": {"name": "digits", "split": "test"}}, "leave split='test' out"),
        ({"features": {"name": "digits-classifier", "weights": "nowhere"}}, "holds no digits classifier"),
    ],
)
def test_bad_input_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_images(**{"images": IMAGES, "labels": LABELS, "cuda": False, **arguments})


def test_digits_features_refuse_other_images(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(20):
            Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / name / f"{i}.png")
    folder = {"name": "folder", "path": str(tmp_path), "size": 16}
    images = torch.zeros(10, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="features='inception-v3'"):
        evaluate_images(images, None, folder, "digits-classifier", cuda=False)


def test_inception_without_its_weights_says_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "none.pth"))
    with pytest.raises(ValueError, match=rf"not at .*none\.pth.*{WEIGHTS_VARIABLE}"):
        evaluate_images(IMAGES, features="inception-v3", cuda=False)
    assert "inception-v3" in EXTRACTORS.names()


class Runs:
    def __reduce__(self) -> tuple:
        return (print, ("code in the file has run",))


def test_inception_weights_with_code_in_them_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"weight": torch.zeros(1), "more": Runs()}, tmp_path / "evil.pth")
    (tmp_path / "text.pth").write_text("hello")
    for name in ("evil.pth", "text.pth"):
        with pytest.raises(ValueError, match="not a file of tensors"):
            Inception(weights=tmp_path / name).weights_path()
    assert "has run" not in capsys.readouterr().out


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the right layout with random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    cls, path = theirs.FeatureExtractorInceptionV3, tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(cls, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        torch.save(cls("inception-v3-compat", ["2048"]).state_dict(), path)
    return path


def test_inception_is_torch_fidelitys_and_its_map_is_of_the_third_block(inception_weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = torch.randint(0, 256, (2, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(inception_weights)
    )
    seen = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, out: seen.append(out))
    pooled, logits = theirs(images)
    ours = Inception(inception_weights).network("cpu", spatial=True)(images)
    torch.testing.assert_close(ours.pooled, pooled)
    torch.testing.assert_close(ours.logits, logits)
    assert ours.spatial is not None
    assert ours.spatial.shape == (2, 17 * 17 * 7)
    torch.testing.assert_close(ours.spatial.view(2, 17, 17, 7)[1, 3, 5], seen[0][1, :7, 3, 5])


def test_the_clean_resize_is_antialiased_and_keeps_fractions() -> None:
    stripes = torch.zeros(1, 3, 299 * 4, 299 * 4, dtype=torch.uint8)
    stripes[..., ::2] = 255  # finer than the result's pixels: their mean, where picking pixels gives black or white
    inner = resize_clean(stripes)[..., 5:-5]
    assert inner.std() < 1e-2
    assert inner.mean() == pytest.approx(127.5, abs=0.5)
    assert resize_tensorflow(stripes).unique().tolist() == [255.0]
    same = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    assert torch.equal(resize_clean(same), same.float())
    ramp = torch.arange(8, dtype=torch.uint8).mul(4).expand(1, 3, 8, 8)
    assert resize_clean(ramp).frac().abs().max() > 0.3


def test_inception_measures_grey_digits_where_its_weights_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inception_weights: Path
) -> None:
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(inception_weights))
    np.savez(tmp_path / "few.npz", images=Digits("test").uint8_images(list(range(20))).numpy())
    few = NpzImages(tmp_path / "few.npz")
    # unlabelled: one class of 20 images, halved
    report = evaluate_images(
        few.uint8_images(list(range(8))), None, few, "inception-v3", ("precision",), cuda=False
    )
    assert 0 <= report.model.metrics["precision"] <= 1
    assert report.protocol.weights != ""
    assert report.protocol.name == "torch-fidelity"
    assert "299" in report.protocol.resize
