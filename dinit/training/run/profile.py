"""Profiling of a training step: the time of each of its parts."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from dinit.files import write_atomically

PARTS = ("data", "noise", "forward", "backward", "optimiser", "EMA", "log")
BETWEEN = ("checkpoint", "samples")  # now and then, between steps
_WARM_UP = 5  # steps whose time is not counted: the first ones compile, allocate and fill the queue of the data


class Profile:
    """Sums the seconds spent in each part of the step. It costs nothing where it is off.

    On a GPU the host waits for the device at the end of every part, so that each part's time is its own work; steps
    are then somewhat slower than without.
    """

    def __init__(self, enabled: bool, device: torch.device) -> None:
        self.enabled, self.steps = enabled, 0
        self._wait = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._began = 0.0
        self._loop = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what runs inside, as part `name`."""
        if not self.enabled:
            yield
            return
        start = self._now()
        try:
            yield
        finally:
            self._seconds[name] += self._now() - start

    def end_step(self) -> None:
        """Call after each step. The times of the first five are discarded."""
        if not self.enabled:
            return
        self.steps += 1
        if self.steps == _WARM_UP:
            self._seconds.clear()
            self._began = self._now()
        self._loop = self._now() - self._began

    def rows(self) -> list[tuple[str, float, float]]:
        """(part, milliseconds per step, fraction of a step). Fractions sum to 1; 'other' is the rest.

        Checkpoints and samples are not in any step: their fraction is of the steps' time as well. Empty for fewer
        than six steps.
        """
        counted = self.steps - _WARM_UP
        if counted < 1:
            return []
        total = self._loop - sum(self._seconds[name] for name in BETWEEN)
        seconds = {name: self._seconds[name] for name in PARTS}
        seconds["other"] = max(total - sum(seconds.values()), 0.0)
        seconds |= {name: self._seconds[name] for name in BETWEEN if self._seconds[name]}
        return [(name, 1000 * value / counted, value / total) for name, value in seconds.items()]

    def table(self) -> str:
        """`rows` as lines of text."""
        lines = [f"{'part of a step':<16}{'ms':>10}{'share':>9}"]
        for name, milliseconds, share in self.rows():
            between = "  (between steps)" if name in BETWEEN else ""
            lines.append(f"{name:<16}{milliseconds:>10.3f}{100 * share:>8.1f}%{between}")
        return "\n".join(lines)

    def write(self, path: Path) -> None:
        """`rows` as JSON, by part."""
        parts = {name: {"ms": round(ms, 4), "share": round(share, 5)} for name, ms, share in self.rows()}
        write_atomically(path, json.dumps({"steps": self.steps - _WARM_UP, "parts": parts}, indent=1) + "\n")

    def _now(self) -> float:
        if self._wait:
            torch.cuda.synchronize()
        return time.perf_counter()
