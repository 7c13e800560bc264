from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from dinit.data import DATASETS
from dinit.data.digits import Digits
from dinit.data.pixels import from_uint8, to_uint8


def test_train_and_test_are_disjoint_and_together_all() -> None:
    train, test, everything = (Digits(split) for split in ("train", "test", "all"))
    assert (len(train), len(test), len(everything)) == (1438, 359, 1797)
    pool = sorted(image.numpy().tobytes() for data in (train, test) for image, _ in data)
    assert pool == sorted(image.numpy().tobytes() for image, _ in everything)


def test_the_split_is_the_one_that_published_figures_rest_on() -> None:
    assert Digits("train").fingerprint() == "6838fde51a5923f1d89b441789181297"
    assert Digits("test").fingerprint() == "4275fd2483aeb0ec7b6805858f10db90"


def test_every_class_gives_a_fifth_to_the_test_split() -> None:
    whole = np.bincount(Digits("all").labels)
    assert (np.bincount(Digits("test").labels) == np.round(0.2 * whole)).all()


def test_pixels_are_the_source_mapped_to_minus_one_to_one() -> None:
    source: Any = load_digits()
    data = Digits("all")
    for index in (0, 1, 1796):
        image, label = data[index]
        assert image.shape == (1, 8, 8)
        assert image.dtype == torch.float32
        assert torch.equal((image[0] + 1) * 8, torch.from_numpy(source.images[index]).float())
        assert label == source.target[index]


def test_bytes_and_floats_go_round() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(every)), every)
    assert from_uint8(every)[[0, 255]].tolist() == [-1.0, 1.0]
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match="uint8"):
        from_uint8(torch.zeros(1))


def test_a_key_changes_nothing_where_there_is_no_augmentation() -> None:
    data = Digits("test")
    assert torch.equal(data.sample(3, key=99)[0], data[3][0])


def test_bad_names_and_indices_are_refused() -> None:
    with pytest.raises(ValueError, match=r"train, test, all.*'valid'"):
        DATASETS.create("digits", split="valid")
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        DATASETS.create("digit")
    for index in (-1, 359):
        with pytest.raises(IndexError, match=r"0 \.\. 358"):
            Digits("test")[index]
