"""Classifiers of `dinit classifier`: training on made pictures of known classes, their folder, their scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dinit.data import DATASETS
from dinit.evaluation import evaluate_images
from dinit.evaluation.classifier_training import (
    ClassifierPlan,
    Pictures,
    augmented,
    drawn,
    every_fifth,
    remarks,
    split_data,
    train_image_classifier,
    usual_plan,
)
from dinit.evaluation.features.image_classifier import (
    ClassifierCard,
    ImageClassifier,
    ImageClassifierConfig,
    load_image_classifier,
    predict,
)
from dinit.evaluation.features.trained_classifier import TrainedExtractor, check_fits, misfits, of_data, resolved
from dinit.evaluation.real_images import has_splits
from dinit.evaluation.resampling import wilson

NAMES = ("left", "right", "ring")
PLAN = ClassifierPlan(steps=40, batch_size=32, width=8)


def blobs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Noisy 12×12 pictures (N, 12, 12) of a spot on the left, on the right, or of a frame, and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = rng.integers(0, 60, (count, 12, 12))
    images[labels == 0, 4:8, 1:5] += 150
    images[labels == 1, 4:8, 7:11] += 150
    images[labels == 2, 1:11:9] += 150
    return images.astype(np.uint8), labels


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[ImageClassifier, Path, Path]:
    """A classifier of blobs, its folder, and the file of its data."""
    place = tmp_path_factory.mktemp("blobs")
    images, labels = blobs(240)
    np.savez(place / "blobs.npz", images=images, labels=labels)
    split = split_data({"name": "npz", "path": str(place / "blobs.npz"), "class_names": list(NAMES)})
    model = train_image_classifier(split, PLAN)
    model.save_pretrained(place / "classifier")
    return model, place / "classifier", place / "blobs.npz"


def of(file: Path) -> dict[str, Any]:
    return {"name": "npz", "path": str(file), "class_names": list(NAMES)}


def test_it_learns_three_classes_and_its_card_has_what_was_measured(trained: tuple) -> None:
    model, folder, _ = trained
    card = model.card
    assert card.accuracy > 0.95
    images, labels = blobs(300, seed=9)
    found = predict(model, torch.from_numpy(images)[:, None]).argmax(1)
    assert float((found == torch.from_numpy(labels)).double().mean()) > 0.95
    assert (card.images, card.held_out, card.per_class) == (192, 48, (64, 64, 64))
    assert (card.low, card.high) == wilson(card.accuracy, 48)
    assert card.held_out_rule == "every 5th picture of each class"
    assert card.data == "blobs"
    assert card.training["steps"] == 40
    assert sum(share * 16 for share in card.class_accuracy if share is not None) == pytest.approx(
        card.accuracy * 48
    )
    read = ImageClassifier.from_pretrained(folder)
    assert read.card == replace(card, training=read.card.training)
    assert torch.equal(
        predict(read, torch.from_numpy(images)[:, None]), predict(model, torch.from_numpy(images)[:, None])
    )
    assert "held-out accuracy" in (folder / "README.md").read_text()


def test_one_seed_gives_one_hash_and_another_seed_another(trained: tuple, tmp_path: Path) -> None:
    _, _, file = trained
    hashes = []
    for number, seed in enumerate((3, 3, 4)):
        model = train_image_classifier(split_data(of(file)), replace(PLAN, steps=3, seed=seed))
        model.save_pretrained(tmp_path / str(number))
        hashes.append(model.hash)
    assert hashes[0] == hashes[1] != hashes[2]


def test_scores_by_a_classifier_have_its_hash_as_protocol(trained: tuple) -> None:
    _, folder, file = trained
    images, labels = blobs(60, seed=5)
    pictures, classes = torch.from_numpy(images)[:, None], torch.from_numpy(labels)
    metrics = ["fid", "precision", "recall", "class-accuracy", "cafd", "memorisation", "pixels"]
    report = evaluate_images(pictures, classes, of(file), str(folder), metrics, cuda=False)
    weights = load_image_classifier(folder).hash
    assert report.protocol.name == report.protocol.features == f"classifier-{weights[:8]}"
    assert report.protocol.weights == weights
    assert report.model.metrics["class_accuracy"] > 0.95
    assert report.model.metrics["copies"] == 0
    assert report.model.metrics["contrast"] == pytest.approx(1, abs=0.1)
    assert "held-out pictures" in report.notes[-1]
    wrong = evaluate_images(pictures, (classes + 1) % 3, of(file), str(folder), ["class-accuracy"], cuda=False)
    assert wrong.model.metrics["class_accuracy"] < 0.05
    assert "near" in report.good("class_accuracy")


def test_a_set_is_at_distance_0_from_itself(trained: tuple) -> None:
    _, folder, file = trained
    data = DATASETS.create(of(file))
    from dinit.data.order import stratified

    rows = np.flatnonzero(stratified(data.labels, 0.5, seed=0)).tolist()  # the reference half
    report = evaluate_images(
        data.uint8_images(rows), None, of(file), str(folder), ["fid", "memorisation", "pixels"], cuda=False
    )
    assert report.model.metrics["fid"] == pytest.approx(0, abs=1e-6)
    assert report.model.metrics["copies"] == 1  # a model of this data was trained on both halves
    assert report.real.metrics["copies"] == 0
    assert report.model.metrics["variety"] == pytest.approx(1)


def test_the_protocols_name_changes_with_one_weight_and_edits_are_refused(trained: tuple, tmp_path: Path) -> None:
    _, folder, _ = trained
    changed = ImageClassifier.from_pretrained(folder)
    changed.head.bias.data[0] += 1e-3
    changed.save_pretrained(tmp_path / "changed")
    assert TrainedExtractor(tmp_path / "changed").name != TrainedExtractor(folder).name

    def edited(name: str, **edits: Any) -> Path:
        ImageClassifier.from_pretrained(folder).save_pretrained(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["network"] |= edits
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        return tmp_path / name

    for place in (
        edited("renamed", class_names=["left", "right", "circle"]),
        edited("reordered", class_names=["right", "left", "ring"]),
        edited("resized", image_size=16),
    ):
        with pytest.raises(ValueError, match="was changed after its training"):
            ImageClassifier.from_pretrained(place)
    short = edited("short")
    (short / "model.safetensors").write_bytes((short / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(ValueError, match="was changed after its training"):
        ImageClassifier.from_pretrained(short)
    other = edited("other")
    tensors = load_file(other / "model.safetensors")
    save_file({**tensors, "head.bias": tensors["head.bias"] + 1}, other / "model.safetensors")
    with pytest.raises(ValueError, match="dinit classifier DATA"):
        ImageClassifier.from_pretrained(other)
    (other / "config.json").write_text('{"width": 36, "num_classes": 10}')
    for place, message in ((other, "is not that of a classifier"), (tmp_path / "none", "holds no classifier")):
        with pytest.raises(ValueError, match=message):
            ImageClassifier.from_pretrained(place)


def test_a_classifier_of_other_classes_or_sizes_is_refused_with_their_names(trained: tuple) -> None:
    _, folder, file = trained
    config = load_image_classifier(folder).config
    assert misfits(config, NAMES, 1, 12) == []
    assert misfits(config, NAMES, 3, 32) == ["it classifies 12×12 grey pictures, these are 32×32 RGB"]
    assert (
        "in another order: 'left', 'right', 'ring', not 'ring', 'left', 'right'"
        in misfits(config, ("ring", "left", "right"), 1, 12)[0]
    )
    (found,) = misfits(config, ("left", "right", "cross"), 1, 12)
    assert "it has no 'cross'; it has 'ring', which these have not" in found
    with pytest.raises(ValueError, match=r"does not fit.*dinit classifier RUN"):
        check_fits(TrainedExtractor(folder), ("a", "b"))
    pictures = torch.zeros(10, 1, 12, 12, dtype=torch.uint8)
    with pytest.raises(ValueError, match="in another order"):
        evaluate_images(
            pictures, None, {**of(file), "class_names": ["right", "left", "ring"]}, str(folder), cuda=False
        )
    with pytest.raises(ValueError, match="unknown feature extractor"):
        resolved("clasifier")
    with pytest.raises(ValueError, match=r"is not here.*FOLDER"):
        resolved("classifier-00000000")


def test_networks_of_every_size_have_few_weights_and_a_map_of_4_to_8() -> None:
    for size in (8, 9, 12, 28, 32, 48, 64, 100, 256):
        for channels in (1, 3):
            config = ImageClassifierConfig(size, channels, tuple(map(str, range(10))))
            model = ImageClassifier(config).eval()
            last = model.last_map(torch.zeros(1, channels, size, size))
            assert last.shape[:2] == (1, 64)
            assert 4 <= last.shape[2] <= 8
            assert sum(p.numel() for p in model.parameters()) * 4 < 1e6
    for size, names, message in (
        (7, NAMES, "8 to 256"),
        (257, NAMES, "8 to 256"),
        (32, ("one",), "nothing to classify"),
        (32, ("a", "a"), "the same name"),
    ):
        with pytest.raises(ValueError, match=message):
            ImageClassifierConfig(size, 3, names)


def test_held_out_pictures_are_every_fifth_of_a_class() -> None:
    labels = np.array([0] * 11 + [1] * 3 + [2] + [3] * 2)
    assert np.flatnonzero(every_fifth(labels)).tolist() == [4, 9, 13, 16]


def test_rare_classes_are_drawn_more_often_where_classes_are_unbalanced() -> None:
    even = np.repeat([0, 1], 50)
    assert sorted(drawn(even, 0, 1)) == list(range(100))
    rare = np.repeat([0, 1], [990, 10])
    share = np.mean(rare[np.concatenate([drawn(rare, 0, epoch) for epoch in range(30)])])
    root = 10**0.5 / (10**0.5 + 990**0.5)  # each class weighs as the root of its count
    assert share == pytest.approx(root, abs=0.01)


def test_augmentation_moves_whole_pixels_and_mirrors_only_where_the_plan_allows() -> None:
    images = torch.arange(64, dtype=torch.uint8).reshape(1, 1, 8, 8).repeat(200, 1, 1, 1)
    still = augmented(images, ClassifierPlan(1, shift=0), torch.Generator().manual_seed(0))
    original = still[0]
    assert torch.equal(still[::2], original.expand(100, 1, 8, 8))  # every second one is without noise
    assert not torch.equal(still[1], original)
    flipped = augmented(images, ClassifierPlan(1, shift=0, flip=True), torch.Generator().manual_seed(0))[::2]
    same = (flipped == original).flatten(1).all(1)
    mirrored = (flipped == original.flip(-1)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    assert 25 < int(mirrored.sum()) < 75
    moved = augmented(images, ClassifierPlan(1, shift=1), torch.Generator().manual_seed(0))[::2]
    centres = {round(float((one[0, 4, 4] + 1) * 127.5)) for one in moved}
    assert centres == {36 + 8 * dy + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)}


def test_the_usual_plan_by_the_number_of_pictures() -> None:
    assert usual_plan(60_000, 28) == ClassifierPlan(3750, 128, shift=2)
    assert usual_plan(1000, 64, flip=True, seed=2) == ClassifierPlan(468, 128, True, 5, 2)
    assert usual_plan(40, 8) == ClassifierPlan(300, 40)


def test_time_shortens_a_plan(trained: tuple) -> None:
    _, _, file = trained
    seen: list[tuple[int, int]] = []
    model = train_image_classifier(
        split_data(of(file)),
        replace(PLAN, steps=100_000),
        minutes=0.01,
        progress=lambda done, steps, _: seen.append((done, steps)),
    )
    assert 1 <= model.card.training["steps"] < 20_000
    assert seen[-1] == (model.card.training["steps"],) * 2


def test_remarks_on_a_classifier_that_measures_little(trained: tuple) -> None:
    model, _, _ = trained

    def said(**facts: Any) -> str:
        other = ImageClassifier(model.config, replace(model.card, **facts))
        return " ".join(remarks(other))

    assert said() == ""
    assert "is poor" in said(accuracy=0.4, low=0.3, high=0.5, held_out=100)
    assert "not known" in said(held_out=0)
    assert "are few" in said(low=0.6, high=0.95)
    assert "fewer than 20 pictures to train on in 'right'" in said(per_class=(64, 3, 64))
    assert "1,000 pictures of 'left', 21 of 'ring'" in said(per_class=(1000, 300, 21))
    assert "'ring' is classified rightly in 20% only" in said(class_accuracy=(1.0, 1.0, 0.2))
    assert ClassifierCard().accuracy == 0


def test_a_file_has_no_test_split_and_a_folder_of_both_has(tmp_path: Path) -> None:
    def idx(name: str, array: np.ndarray) -> None:
        head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
        (tmp_path / name).write_bytes(head + array.astype(np.uint8).tobytes())

    images, labels = blobs(60)
    idx("train-images-idx3-ubyte", images)
    idx("train-labels-idx1-ubyte", labels)
    folder, file = ({"name": "idx", "path": str(p)} for p in (tmp_path, tmp_path / "train-images-idx3-ubyte"))
    assert not has_splits(folder)
    assert len(split_data(folder).held_out_rows) == 12
    idx("t10k-images-idx3-ubyte", images[:9])
    idx("t10k-labels-idx1-ubyte", labels[:9])
    assert has_splits(folder)
    split = split_data({**folder, "split": "train", "horizontal_flip": True})
    assert (split.rule, len(split.train_rows), len(split.held_out_rows)) == ("test split", 60, 9)
    assert not split.train.horizontal_flip
    assert not has_splits(file)
    assert has_splits("digits")
    kept = Pictures(split.train, np.arange(5, 20))
    assert torch.equal(kept[np.array([3, 0])], split.train.uint8_images([8, 5]))


def test_the_shipped_fashion_classifier_is_found_by_the_data_and_its_classes() -> None:
    extractor = resolved("fashion-classifier")
    config, card = extractor.classifier.config, extractor.classifier.card
    assert (config.image_size, config.channels, len(config.class_names)) == (28, 1, 10)
    assert card.accuracy >= 0.92
    assert card.held_out == 10_000
    assert resolved(extractor.name).folder == extractor.folder
    readme = (extractor.folder / "README.md").read_text(encoding="utf-8")
    assert extractor.name in readme
    assert f"{card.accuracy:.1%}".replace("%", " %") in readme
    data: Any = type("Data", (), {"class_names": config.class_names, "channels": 1, "image_size": 28})()
    assert of_data(data, "fashion-mnist").name == extractor.name
    assert of_data(data, "photos") is None
