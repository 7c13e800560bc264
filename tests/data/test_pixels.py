"""Pixels and labels as numbers, where a wrong rule would give a picture that looks right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dinit.data.arrays import NpzImages
from dinit.data.images import square, to_8_bit
from dinit.data.webdataset import windowed_order


def test_16_bit_pixels_are_rounded_to_the_nearest_byte() -> None:
    """The byte b stands for 257 b, so its neighbours meet at 257 b + 128.5; `>> 8` differs from 129 on."""
    values = [0, 128, 129, 385, 386, 33024, 33025, 65406, 65407, 65535]
    deep = Image.fromarray(np.array([values], np.uint16))
    assert np.asarray(to_8_bit(deep))[0].tolist() == [0, 0, 1, 1, 2, 128, 129, 254, 255, 255]


def bicubic(line: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """Catmull-Rom interpolation of a line, widened by the scale where it shrinks. Keys 1981, a = -1/2."""

    def kernel(x: NDArray[np.float64]) -> NDArray[np.float64]:
        x, a = np.abs(x), -0.5
        near = ((a + 2) * x - (a + 3)) * x**2 + 1
        far = ((x - 5) * x + 8) * x * a - 4 * a
        return np.where(x < 1, near, np.where(x < 2, far, 0))

    scale = len(line) / size
    width = max(scale, 1.0)
    centres = (np.arange(size) + 0.5) * scale - 0.5
    weights = kernel((np.arange(len(line)) - centres[:, None]) / width)
    return (weights / weights.sum(1, keepdims=True)) @ line


@pytest.mark.parametrize(("side", "size"), [(8, 12), (12, 8), (7, 32)])
def test_other_scales_than_halves_are_bicubic(side: int, size: int) -> None:
    """Bilinear differs by up to 30 bytes here."""
    line = np.random.default_rng(0).integers(60, 200, side).astype(np.uint8)
    image = Image.fromarray(np.tile(line, (side, 1)))
    expected = bicubic(line.astype(np.float64), size)
    found = np.asarray(square(image, size)).astype(np.float64)
    assert np.abs(found - expected).max() <= 1.0  # Pillow rounds its weights, then the rows, then the columns
    assert np.abs(np.asarray(square(image.rotate(90), size)).T[:, ::-1] - expected).max() <= 1.0


def test_a_halved_image_is_then_scaled_by_the_bicubic_filter() -> None:
    line = np.random.default_rng(1).integers(60, 200, 24).astype(np.uint8)
    found = np.asarray(square(Image.fromarray(np.tile(line, (24, 1))), 8)).astype(np.float64)
    expected = bicubic(line.reshape(12, 2).mean(1), 8)
    assert np.abs(found - expected).max() <= 1.5


@pytest.mark.parametrize("name", ["labels", "arr_1"])
def test_classes_of_a_file_are_counted_from_0(tmp_path: Path, name: str) -> None:
    """Not from the smallest label that it has: labels keep their meaning when a file lacks some."""
    images = np.zeros((4, 8, 8, 3), np.uint8)
    arrays: Any = {"images": images, name: np.array([2, 5, 3, 5])}
    np.savez(tmp_path / "a.npz", **arrays)
    data = NpzImages(tmp_path / "a.npz")
    assert data.labels.tolist() == [2, 5, 3, 5]
    assert data.num_classes == 6
    assert data.class_names == ("0", "1", "2", "3", "4", "5")


def test_tars_come_in_another_order_each_epoch_and_in_the_same_again() -> None:
    counts = [3] * 8

    def tars(seed: int, epoch: int) -> tuple[int, ...]:
        order = windowed_order(seed, epoch, counts, window=1)
        return tuple((order[::3] // 3).tolist())

    epochs = [tars(0, epoch) for epoch in range(5)]
    assert len(set(epochs)) == 5
    assert all(sorted(one) == list(range(8)) for one in epochs)
    assert [tars(0, epoch) for epoch in range(5)] == epochs
    assert tars(1, 0) != epochs[0]


@pytest.mark.parametrize(("over", "first"), [(1, 0), (2, 1), (3, 1)])
def test_of_an_odd_margin_the_smaller_half_is_before(over: int, first: int) -> None:
    values = np.arange(8 * (8 + over), dtype=np.uint8).reshape(8 + over, 8)
    assert np.array_equal(np.asarray(square(Image.fromarray(values), 8)), values[first : first + 8])
    turned = np.asarray(square(Image.fromarray(values.T.copy()), 8))
    assert np.array_equal(turned, values.T[:, first : first + 8])
