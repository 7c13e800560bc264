"""Counting of skipped steps, and what is called a spike."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from dinit.training.run.divergence import Skips, SpikeDetector, TrainingDiverged, write_skip
from dinit.training.run.health import forget_after


def test_only_steps_in_a_row_end_a_run() -> None:
    skips = Skips(limit=3)
    for step, finite in enumerate([False, False, True, False, False, True]):
        skips.record(step, finite)
    assert (skips.total, skips.consecutive) == (4, 0)
    skips.record(6, False), skips.record(7, False)
    with pytest.raises(TrainingDiverged, match="3 consecutive steps, up to step 8"):
        skips.record(8, False)


def test_spikes_stand_out_and_do_not_hide_the_next() -> None:
    luck = random.Random(0)
    losses = [1 + 0.01 * luck.gauss(0, 1) for _ in range(200)]
    losses[120] = losses[121] = 1.5
    losses[10] = 9.0  # too early to tell
    losses[150] = float("nan")
    detector = SpikeDetector()
    assert detector.spikes(1, losses[:121]) == [(121, 1.5)]
    assert detector.spikes(122, losses[121:]) == [(122, 1.5)]


def test_a_resumed_run_forgets_later_skips(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    forget_after(path, 3)
    assert not path.exists()
    for step in (2, 3, 5):
        write_skip(path, step, math.inf, [step, step + 1])
    forget_after(path, 3)
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": step, "loss": "inf", "indices": [step, step + 1]} for step in (2, 3)
    ]
