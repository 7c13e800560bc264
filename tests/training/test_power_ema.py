"""Power-function EMAs: their profile, and other widths made of snapshots against averages that were tracked."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from dinit.training.averaging.power_ema import PowerEMA, Snapshot, coefficients, gamma_of, width_of
from dinit.training.averaging.snapshots import average_of_width, save_snapshot

STEPS = 2000


class Walk(nn.Module):
    """A network whose weights are given at every step."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))

    def go(self, value: torch.Tensor) -> None:
        with torch.no_grad():
            self.weight.copy_(value)


def test_width_is_the_deviation_of_the_profile() -> None:
    t = torch.linspace(0, 1, 400_001, dtype=torch.float64)
    for gamma in (0.0, 1.5, 6.94, 16.97):
        profile = (gamma + 1) * t**gamma
        mean = torch.trapezoid(profile * t, t)
        variance = torch.trapezoid(profile * (t - mean) ** 2, t)
        assert width_of(gamma) == pytest.approx(math.sqrt(float(variance)), rel=1e-6)
        assert gamma == 0 or gamma_of(width_of(gamma)) == pytest.approx(gamma, rel=1e-9)
    # Karras et al. 2024: gamma 16.97 and 6.94 are widths of 5 and 10 %.
    assert gamma_of(0.05) == pytest.approx(16.97, abs=5e-3)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=5e-3)


def test_the_average_weighs_steps_by_their_power() -> None:
    """An indicator of each step gives the weight of that step: (gamma + 1) t^gamma / T^(gamma + 1) about."""
    network = Walk(200)
    average = PowerEMA(network, 0.15)
    for step in range(1, 201):
        network.go(torch.eye(200)[step - 1])
        average.update(step)
    found = average.averages["weight"].double()
    middle = torch.arange(1, 201, dtype=torch.float64) - 0.5
    expected = (average.gamma + 1) * middle**average.gamma / 200 ** (average.gamma + 1)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    assert float((found - expected).abs().sum()) < 0.01


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float, torch.Tensor]]:
    """Snapshots of two widths over a random walk, and the averages of four other widths at its end."""
    folder = tmp_path_factory.mktemp("run") / "ema"
    network, generator = Walk(256), torch.Generator().manual_seed(0)
    kept = [PowerEMA(network, width) for width in (0.05, 0.10)]
    wanted = [PowerEMA(network, width) for width in (0.04, 0.07, 0.12, 0.2)]
    for step in range(1, STEPS + 1):
        network.go(network.weight.detach() + torch.randn(256, generator=generator))
        for average in (*kept, *wanted):
            average.update(step)
        if step % 125 == 0:
            for average in kept:
                save_snapshot(folder, average, step)
    return folder, {average.sigma_rel: average.averages["weight"] for average in wanted}


@pytest.mark.parametrize(("width", "bound"), [(0.04, 0.03), (0.07, 0.01), (0.12, 0.01), (0.2, 0.01)])
def test_other_widths_come_out_of_two(
    tracked: tuple[Path, dict[float, torch.Tensor]], width: float, bound: float
) -> None:
    """To a per cent or so of how far a width that is 0.01 off lies."""
    folder, wanted = tracked
    found, step = average_of_width(folder, width)
    assert step == STEPS
    spread = float(wanted[0.2].square().mean().sqrt())  # of the walk itself
    assert float((found["weight"] - wanted[width]).square().mean().sqrt()) < bound * spread


def test_a_kept_snapshot_is_itself() -> None:
    kept = [Snapshot(step, width) for step in (250, 500, 1000) for width in (0.05, 0.1)]
    shares = coefficients(kept, 500, 0.1)
    assert shares == pytest.approx([0, 0, 0, 1, 0, 0], abs=1e-6)


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at most 0\.28"):
        gamma_of(0.3)
    with pytest.raises(ValueError, match=r"ema\.widths"):
        average_of_width(tmp_path, 0.1)
    with pytest.raises(ValueError, match="need a snapshot from step"):
        coefficients([Snapshot(100, 0.1)], 1000, 0.1)
