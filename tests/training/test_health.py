"""What a run tells about itself: losses by noise level, statistics, the page, the profile."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from dinit.data.base import InMemory
from dinit.training.run import health, profile
from dinit.training.run.health import (
    NoiseBins,
    append_line,
    bin_means,
    bin_names,
    data_statistics,
    forget_after,
    image_statistics,
)
from dinit.training.run.profile import Profile


def test_losses_are_told_by_their_noise_level() -> None:
    bins = NoiseBins(torch.device("cpu"))
    log_snr = torch.tensor([-20.0, -1.0, -2.0, 1.0, 50.0, -0.5], dtype=torch.float64)
    bins.add(torch.tensor([4.0, 1.0, 2.0, 0.5, 0.25, math.nan]), log_snr)
    bins.add(torch.tensor([6.0]), torch.tensor([-9.5], dtype=torch.float64))
    means = dict(zip(bin_names(), bin_means(bins.take().tolist()), strict=True))
    told = {name: value for name, value in means.items() if value is not None}
    assert told == {"below -9": 5.0, "-3 .. 0": 1.5, "0 .. 3": 0.5, "above 9": 0.25}
    assert bin_means(bins.take().tolist()) == [None] * health.BINS  # started again


def test_means_of_several_processes_are_those_of_all_samples() -> None:
    """Sums and counts are averaged, not means: 3 losses of one process and 1 of another weigh 3 to 1."""
    first, second = NoiseBins(torch.device("cpu")), NoiseBins(torch.device("cpu"))
    first.add(torch.tensor([1.0, 1.0, 1.0]), torch.full((3,), 1.0, dtype=torch.float64))
    second.add(torch.tensor([5.0]), torch.full((1,), 1.0, dtype=torch.float64))
    mean = (first.take() + second.take()) / 2
    assert [value for value in bin_means(mean.tolist()) if value is not None] == [2.0]


@pytest.mark.parametrize(("count", "stride"), [(512, 1), (1023, 1), (1024, 2), (1536, 3)])
def test_statistics_of_data_are_of_512_images_all_over_it(count: int, stride: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (count, 1, 2, 2)).astype(np.uint8)
    images[: count // 2] //= 4  # sorted, as classes often are
    data = InMemory(images, np.zeros(count, dtype=np.int64), ("0",), False)
    chosen = images[::stride][:512].astype(np.float64) / 127.5 - 1
    assert data_statistics(data) == pytest.approx({"mean": chosen.mean(), "std": chosen.std()}, abs=1e-6)


def test_statistics_of_images() -> None:
    images = torch.tensor([1.0, 3.0, -1.0, 1.0]).reshape(1, 1, 2, 2).repeat(5, 3, 1, 1)
    assert image_statistics(images) == pytest.approx({"mean": 1.0, "std": math.sqrt(2.0)})


def test_lines_are_forgotten_after_a_step_and_half_ones_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "health.jsonl"
    for step in (1, 2, 3):
        append_line(path, {"step": step, "loss": math.nan if step == 2 else 0.5})
    path.write_text(path.read_text() + '{"step": 4, "lo')
    forget_after(path, 2)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": None},
    ]


def test_profile_shares_out_the_steps_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a clock of our own: per step 1 s of data, 6 s forward, 3 s of nothing named; a checkpoint of 20 s."""
    clock = [0.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: clock[0])
    found = Profile(True, torch.device("cpu"))
    for step in range(9):
        for name, seconds in (("data", 1.0), ("forward", 6.0)):
            with found.part(name):
                clock[0] += seconds if step >= 5 else 100.0
        clock[0] += 3.0
        if step == 7:
            with found.part("checkpoint"):
                clock[0] += 20.0
        found.end_step()
    rows = {name: (ms, share) for name, ms, share in found.rows()}
    assert rows["data"] == pytest.approx((1000.0, 0.1))
    assert rows["forward"] == pytest.approx((6000.0, 0.6))
    assert rows["other"] == pytest.approx((3000.0, 0.3))
    assert rows["backward"] == (0.0, 0.0)
    assert rows["checkpoint"] == pytest.approx((5000.0, 0.5))
    found.write(tmp_path / "profile.json")
    assert json.loads((tmp_path / "profile.json").read_text())["parts"]["data"] == {"ms": 1000.0, "share": 0.1}


def test_a_profile_that_is_off_counts_nothing() -> None:
    found = Profile(False, torch.device("cpu"))
    for _ in range(9):
        with found.part("data"):
            pass
        found.end_step()
    assert found.rows() == []
