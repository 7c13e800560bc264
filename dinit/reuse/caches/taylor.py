"""TaylorSeer: features are forecast from those of the last evaluations. Liu et al. 2025."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch

from dinit.diffusion import Scales
from dinit.diffusion.process import expand
from dinit.reuse.body import Body, Region
from dinit.reuse.caches.base import CACHES
from dinit.reuse.caches.deepcache import check_interval
from dinit.reuse.caches.region import Features, RegionCache, each


@CACHES.register("taylor")
@dataclass(frozen=True)
class TaylorCache(RegionCache):
    """Between whole evaluations the features are the polynomial in t through the last `order` + 1 of them.

    Liu et al. 2025, arXiv:2503.06923, who differentiate by the number of the step; here by the process's time, so
    that features that are polynomials in t of this order are exact on any grid. At the beginning of a run, with
    fewer evaluations, the order is lower. On blocks in a row all blocks are left out, in a U-shaped network what
    lies below a skip.

    Args:
        interval: at least 1; 1 is no cache (neutral).
        order: 0 (the last features), 1 or 2.
        branch: the skip of a U-shaped network, from 0, the outermost.

    Raises:
        ValueError: a number out of its range; from `wrap`, a network without such blocks.
    """

    interval: int = 3
    order: int = 1
    branch: int = 0

    def __post_init__(self) -> None:
        check_interval(self.interval)
        if self.order not in (0, 1, 2):
            raise ValueError(f"order must be 0, 1 or 2, got {self.order}")
        if self.branch < 0:
            raise ValueError(f"branch must be at least 0 (the outermost skip), got {self.branch}")

    @property
    def kept(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """How many evaluations the forecast takes."""
        return self.order + 1

    @property
    def neutral(self) -> bool:
        return self.interval == 1

    def regions(self, body: Body) -> tuple[Region, ...]:
        if body.takes:
            return (body.deep(self.branch, "taylor"),)
        return (body.chain(0, len(body.blocks), "taylor"),)

    def fresh(self, number: int, steps: int | None) -> bool:
        return number % self.interval == 0

    def forecast(self, history: list[tuple[Scales, Features]], t: Scales) -> Features:
        if len(history) == 1:
            return history[0][1]
        weights = lagrange_weights([at for at, _ in history], t)

        def combined(*values: torch.Tensor) -> torch.Tensor:
            terms = (_broadcast(weight, value) * value for weight, value in zip(weights, values, strict=True))
            return reduce(torch.add, terms)

        return each(combined, *(value for _, value in history))


def lagrange_weights(nodes: list[Scales], t: Scales) -> list[Any]:
    """Weights of the values at the nodes in the polynomial through them, at t.

    Args:
        nodes: times, all of one kind.
        t: the time of the value.

    Returns:
        One weight a node: a number, or (B,) where each sample has its own time.
    """
    single = t.single and all(node.single for node in nodes)
    times = [node.floats.time if single else node.time for node in nodes]
    at = t.floats.time if single else t.time
    weights: list[Any] = []
    for i, one in enumerate(times):
        others = [other for j, other in enumerate(times) if j != i]
        weights.append(reduce(lambda product, other: product * (at - other) / (one - other), others, 1.0))
    return weights


def _broadcast(weight: Any, value: torch.Tensor) -> Any:
    return expand(weight, value).to(value) if isinstance(weight, torch.Tensor) and weight.ndim else weight
