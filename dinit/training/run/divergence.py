"""Divergence: steps whose gradient is not finite are skipped, counted and logged; spikes of the loss are found."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

_SPIKE = 8.0
"""Deviations above the mean of recent losses from which a loss is called a spike."""
_RECENT = 50


class TrainingDiverged(RuntimeError):
    """The loss or its gradient was not finite for too many consecutive steps."""


@dataclass
class Skips:
    """Counts the optimiser steps that were skipped, in all and consecutively.

    limit: how many consecutive ones end the run.
    """

    limit: int
    total: int = 0
    consecutive: int = 0

    def record(self, step: int, finite: bool) -> None:
        """TrainingDiverged at the limit-th consecutive bad step."""
        self.consecutive = 0 if finite else self.consecutive + 1
        self.total += not finite
        if self.consecutive >= self.limit:
            raise TrainingDiverged(
                f"loss or gradient was not finite for {self.consecutive} consecutive steps, up to step "
                f"{step}; the last "
                "checkpoint is from before them, and skipped.jsonl names their images. Lower optimizer.lr, "
                "lengthen schedule.warmup_steps, or use precision fp32"
            )


def write_skip(path: Path, step: int, loss: float, indices: Sequence[int]) -> None:
    """Append a line to skipped.jsonl: the step, its loss and the data set's rows of its batch."""
    with open(path, "a", encoding="utf-8") as stream:
        stream.write(json.dumps({"step": step, "loss": str(loss), "indices": list(indices)}) + "\n")


@dataclass
class SpikeDetector:
    """Finds losses far above the recent ones."""

    recent: list[float] = field(default_factory=list)

    def spikes(self, first_step: int, losses: Sequence[float]) -> list[tuple[int, float]]:
        """(step, loss) of those 8 deviations above the mean of the last 50; spikes do not count among these."""
        found = []
        finite = ((step, loss) for step, loss in enumerate(losses, first_step) if math.isfinite(loss))
        for step, loss in finite:
            if len(self.recent) == _RECENT:
                mean, deviation = statistics.fmean(self.recent), statistics.pstdev(self.recent)
                if loss > mean + _SPIKE * deviation:
                    found.append((step, loss))
                    continue
            self.recent = [*self.recent, loss][-_RECENT:]
        return found
