"""Delta-DiT: what a row of blocks adds to its input is kept. Chen et al. 2024."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dinit.reuse.body import Body, Region
from dinit.reuse.caches.base import CACHES
from dinit.reuse.caches.deepcache import check_interval
from dinit.reuse.caches.region import RegionCache


@CACHES.register("delta")
@dataclass(frozen=True)
class DeltaCache(RegionCache):
    """Between whole evaluations a row of blocks is replaced by what it added to its input the last time.

    Early in a run, while outlines form, these are the last blocks, late, when details do, the first. Chen et al.
    2024 (Delta-DiT), arXiv:2406.01125.

    Args:
        interval: at least 1; 1 is no cache (neutral).
        blocks: how many are left out, at least 1 and fewer than the network has; None for half of them.
        switch: share of the steps after which the first blocks are left out in place of the last, in [0, 1].

    Raises:
        ValueError: a number out of its range; from `wrap`, a network that is no row of blocks.
    """

    interval: int = 3
    blocks: int | None = None
    switch: float = 0.5

    residual: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_interval(self.interval)
        if self.blocks is not None and self.blocks < 1:
            raise ValueError(f"blocks must be at least 1, or None for half of them, got {self.blocks}")
        if not 0 <= self.switch <= 1:
            raise ValueError(f"switch must be in [0, 1], got {self.switch}")

    @property
    def neutral(self) -> bool:
        return self.interval == 1

    def regions(self, body: Body) -> tuple[Region, ...]:
        whole = len(body.blocks)
        left_out = max(whole // 2, 1) if self.blocks is None else self.blocks
        if left_out > whole:
            raise ValueError(f"delta leaves out {left_out} blocks, and {body.network} has {whole}: give blocks=N")
        return body.chain(whole - left_out, whole, "delta"), body.chain(0, left_out, "delta")

    def fresh(self, number: int, steps: int | None) -> bool:
        return number % self.interval == 0

    def choose(self, number: int, steps: int | None) -> int:
        return int(steps is not None and number >= self.switch * steps)
