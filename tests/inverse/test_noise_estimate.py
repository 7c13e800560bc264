"""The noise of a measurement, estimated."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dinit.inverse import Mask, Measurement, estimate_noise


def waves(batch: int, size: int) -> Tensor:
    """Smooth images in [-1, 1]."""
    rows, columns = torch.arange(size).double()[:, None] / size, torch.arange(size).double()[None] / size
    return torch.stack([torch.sin(5 * rows + k) * torch.cos(4 * columns - k) for k in range(batch)])[:, None]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("std", [0.01, 0.05, 0.3])
def test_known_noise_is_found(std: float) -> None:
    y = waves(8, 64) + std * noise(8, 1, 64, 64)
    # The median's own standard deviation is 1.17 std / sqrt(number of blocks that share no pixel).
    bound = 4 * 1.17 / math.sqrt(8 * 32 * 32) + 0.01
    assert estimate_noise(y) == pytest.approx(std, rel=bound)
    assert estimate_noise(y.float()) == pytest.approx(std, rel=bound)
    # Only the values that a mask shows count.
    mask = Mask(box=(0, 0, 64, 30))
    broken = torch.where(mask.known((1, 64, 64)), y, 5 * noise(8, 1, 64, 64).flip(0))
    found = Measurement.with_estimated_noise(mask, broken)
    assert found.noise_std == pytest.approx(std, rel=2 * bound)
    assert found.a is mask
    assert Measurement.with_estimated_noise("identity", y).noise_std == estimate_noise(y)


def test_no_noise() -> None:
    assert estimate_noise(waves(2, 64)) < 0.002
    assert estimate_noise(torch.ones(1, 3, 2, 2)) == 0


def test_what_noise_is_not_estimated_from() -> None:
    for y in (torch.zeros(3, 5), torch.zeros(1, 1, 1, 8), torch.zeros(0, 1, 4, 4)):
        with pytest.raises(ValueError, match="at least 2 x 2 pixels"):
            estimate_noise(y)
    with pytest.raises(ValueError, match="no 2 x 2 pixels are seen together"):
        estimate_noise(torch.zeros(1, 1, 4, 4), torch.eye(4))
