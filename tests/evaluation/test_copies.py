"""Copies of training images, where one distance taken for another would give another figure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dinit.evaluation.metrics.memorisation import figures, nearest


def grey(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()


def test_a_copy_is_judged_by_the_second_nearest_and_not_by_the_neighbours_own() -> None:
    """12 is 2 from 10, whose own neighbour is 7 off: more than a third of the 5 to the second nearest."""
    found = figures(nearest(grey(12), grey(10, 17, 90)))
    assert found == {"copies": 0.0, "nearer": 1.0, "nearest_ratio": pytest.approx(2 / 7)}


def test_a_copy_is_strictly_nearer_than_a_third() -> None:
    assert figures(nearest(grey(12), grey(10, 18, 90)))["copies"] == 0.0  # 2 and 6
    assert figures(nearest(grey(12), grey(10, 19, 90)))["copies"] == 1.0  # 2 and 7


def test_a_distance_is_the_root_mean_square_over_pixels() -> None:
    corner = torch.zeros(1, 1, 2, 2, dtype=torch.uint8)
    corner[..., 1, 1] = 6
    found = nearest(corner, grey(0, 8))
    assert found.first.tolist() == [3.0]  # sqrt(36 / 4)
    assert found.second.tolist() == [7.0]  # sqrt((3 · 64 + 4) / 4)
