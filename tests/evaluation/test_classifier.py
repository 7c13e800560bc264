import json
from pathlib import Path

import pytest
import torch

from dinit.data.digits import Digits
from dinit.evaluation.features.digits_classifier import (
    SHIPPED,
    DigitsClassifier,
    accuracy,
    augment,
    classify,
    load_classifier,
    train_classifier,
)


def digits(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    data = Digits(split)
    return torch.stack([image for image, _ in data]), torch.from_numpy(data.labels)


def test_the_shipped_classifier_reads_the_test_split() -> None:
    assert accuracy(load_classifier()) >= 0.98
    size = sum(file.stat().st_size for file in SHIPPED.iterdir())
    assert size < 400_000


def test_it_still_reads_digits_that_are_moved_turned_or_noisy() -> None:
    images, labels = digits("test")
    generator = torch.Generator().manual_seed(0)
    noisy = images + 0.2 * torch.randn(images.shape, generator=generator)
    for changed in (augment(images, generator), images.roll(1, -1), noisy.clamp(-1, 1)):
        assert float((classify(changed)[0] == labels).double().mean()) >= 0.98


def test_probabilities_are_probabilities_and_labels_their_mode() -> None:
    images, _ = digits("test")
    labels, probs = classify(images)
    torch.testing.assert_close(probs.sum(dim=1), torch.ones(len(images)))
    assert torch.equal(labels, probs.argmax(dim=1))
    assert classify(images[:0])[0].shape == (0,)


def test_an_image_is_read_the_same_in_any_batch() -> None:
    images, _ = digits("train")  # more than one piece of 1,024
    whole = classify(images)[1]
    single = torch.cat([classify(images[i : i + 1])[1] for i in (0, 1023, 1024, 1437)])
    torch.testing.assert_close(whole[[0, 1023, 1024, 1437]], single, atol=1e-5, rtol=0)


def test_training_learns_and_repeats() -> None:
    first, second = (train_classifier(seed=3, epochs=3) for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    assert accuracy(first) > 0.85
    state = torch.get_rng_state()
    train_classifier(epochs=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentation_moves_by_at_most_what_it_says() -> None:
    image = torch.full((500, 1, 8, 8), -1.0)
    image[:, :, 3:5, 3:5] = 1.0
    moved = (augment(image, torch.Generator().manual_seed(0)) + 1) / 2
    weight = moved * (moved > 0.25)  # without the noise
    place = torch.arange(8.0)
    x = (weight * place).sum((1, 2, 3)) / weight.sum((1, 2, 3)) - 3.5
    assert 0.3 < x.std() < 0.75  # uniform in [-1, 1] has 0.577
    assert x.abs().max() < 1.4
    assert abs(x.mean()) < 0.1


def test_a_saved_classifier_is_the_same(tmp_path: Path) -> None:
    load_classifier().save_pretrained(tmp_path / "copy")
    again = DigitsClassifier.from_pretrained(tmp_path / "copy")
    images, _ = digits("test")
    assert torch.equal(classify(images)[1], classify(images, again)[1])


def test_a_folder_that_holds_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no digits classifier"):
        DigitsClassifier.from_pretrained(tmp_path)
    load_classifier().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match="holds no digits classifier"):
        DigitsClassifier.from_pretrained(tmp_path)
    load_classifier().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"width": 8}))
    with pytest.raises(ValueError, match="holds no digits classifier"):
        DigitsClassifier.from_pretrained(tmp_path)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \(2, 3, 8, 8\)"):
        classify(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match=r"got torch\.uint8"):
        classify(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
