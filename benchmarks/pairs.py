"""Timing of several calls in turns, A B A B ..., so that what else the machine does falls on all alike.

The time is that of the process on its cores, which is the clock's on an idle machine with one thread, and hardly
depends on other processes.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    """Quotient of two times over many rounds: median and quartiles."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def times(
    runs: dict[str, Callable[[], Any]],
    rounds: int,
    before: Callable[[], Any] = lambda: None,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Milliseconds of each run in each round, in turns, after a call of each to warm up.

    Args:
        runs: What is timed, by name.
        rounds: How often.
        before: Called before every run, outside its time.
        clock: In seconds; time.perf_counter where several threads share the work.

    Returns:
        As many times for each name as there are rounds.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    gc.collect()
    for turn in range(rounds):
        names = list(runs) if turn % 2 == 0 else list(reversed(runs))
        for name in names:
            before()
            start = clock()
            runs[name]()
            found[name].append(1e3 * (clock() - start))
    return found


def ratio(over: list[float], under: list[float]) -> Ratio:
    """over / under, round by round."""
    quotients = [a / b for a, b in zip(over, under, strict=True)]
    low, median, high = statistics.quantiles(quotients, n=4)
    return Ratio(median, low, high)
