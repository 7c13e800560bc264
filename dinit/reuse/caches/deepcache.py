"""DeepCache: the features below a skip connection are kept. Ma, Fang & Wang 2024."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from dinit.reuse.body import Body, Region
from dinit.reuse.caches.base import CACHES
from dinit.reuse.caches.region import RegionCache


@CACHES.register("deepcache")
@dataclass(frozen=True)
class DeepCache(RegionCache):
    """Every `interval`-th evaluation runs the whole U, and those between only what lies above a skip.

    Ma, Fang & Wang 2024 (CVPR), arXiv:2312.00858.

    Args:
        interval: at least 1; 1 is no cache (neutral). The paper's N.
        branch: the skip below which features are kept, from 0, the outermost. A deeper one is nearer to the whole
            network and dearer.
        schedule: "uniform", every interval-th; "power" puts the same number of whole evaluations where the paper's
            power law has them (their section 3.4), denser around `center`.
        center: of the power law, in steps from the first; None for a quarter of them.
        power: of the law, above 1.

    Raises:
        ValueError: a number out of its range; from `wrap`, a network without such a skip.
    """

    interval: int = 3
    branch: int = 0
    schedule: Literal["uniform", "power"] = "uniform"
    center: int | None = None
    power: float = 1.4

    def __post_init__(self) -> None:
        check_interval(self.interval)
        if self.branch < 0:
            raise ValueError(f"branch must be at least 0 (the outermost skip), got {self.branch}")
        if self.schedule not in ("uniform", "power"):
            raise ValueError(f"schedule must be 'uniform' or 'power', got {self.schedule!r}")
        if not self.power > 1:
            raise ValueError(f"power must be above 1, got {self.power}")

    @property
    def neutral(self) -> bool:
        return self.interval == 1

    def regions(self, body: Body) -> tuple[Region, ...]:
        return (body.deep(self.branch, "deepcache"),)

    def fresh(self, number: int, steps: int | None) -> bool:
        if self.schedule == "uniform" or steps is None:
            return number % self.interval == 0
        center = steps // 4 if self.center is None else self.center
        return number in power_law(steps, self.interval, center, self.power)


def check_interval(interval: int) -> None:
    """ValueError for an interval below 1."""
    if interval < 1:
        raise ValueError(f"interval must be at least 1 (1 is no cache), got {interval}")


@lru_cache(maxsize=64)
def power_law(steps: int, interval: int, center: int, power: float) -> frozenset[int]:
    """The steps that run the whole network: a grid that is even in the signed power 1 / `power` of their distance
    from `center`.

    Args:
        steps: of the run.
        interval: they are ceil(steps / interval) at most; 0 is among them.
        center: where they are densest.
        power: above 1.
    """
    count = -(-steps // interval)
    low, high = _signed(-center, 1 / power), _signed(steps - center, 1 / power)
    points = (low + (high - low) * i / count for i in range(count))
    return frozenset({0, *(min(max(round(_signed(p, power) + center), 0), steps - 1) for p in points)})


def _signed(value: float, power: float) -> float:
    return abs(value) ** power * (1 if value >= 0 else -1)
