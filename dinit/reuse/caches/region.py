"""Caches of one region of the body: every few evaluations all of it is run, and between them it is left out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Scales
from dinit.reuse.body import Body, Pass, Passes, Region
from dinit.reuse.caches.base import Cache, CacheState

Features = Any  # a tensor (B, ...), or a tuple of them: what a network carries on


def each(function: Callable[..., Tensor], *features: Features) -> Features:
    """function of the tensors of features, one by one.

    Args:
        function: of as many tensors as there are features.
        features: of one form.
    """
    if isinstance(features[0], tuple):
        return tuple(function(*parts) for parts in zip(*features, strict=True))
    return function(*features)


@dataclass(frozen=True)
class RegionCache(Cache):
    """A cache that leaves a region out and puts a value at its end."""

    kept: ClassVar[int] = 1
    residual: ClassVar[bool] = False

    @abstractmethod
    def regions(self, body: Body) -> tuple[Region, ...]:
        """The regions of which one at a time is left out; ValueError where the network lacks them.

        Args:
            body: of the network.
        """

    @abstractmethod
    def fresh(self, number: int, steps: int | None) -> bool:
        """Whether an evaluation runs the whole network. The first does in any case.

        Args:
            number: of the evaluation in its place of the steps, from 0.
            steps: of the run; None outside a run.
        """

    def choose(self, number: int, steps: int | None) -> int:
        """Which of the regions is left out. Arguments: as of `fresh`."""
        return 0

    def forecast(self, history: list[tuple[Scales, Features]], t: Scales) -> Features:
        """The value at the end of a region; here the latest.

        Args:
            history: of evaluations that ran it, the newest last, at least one and at most `kept`.
            t: the time of this evaluation.
        """
        return history[-1][1]

    def check(self, body: Body) -> None:
        self.regions(body)

    def start(self, body: Body) -> CacheState:
        return _RegionState(self, self.regions(body))


class _RegionState(CacheState):
    def __init__(self, cache: RegionCache, regions: tuple[Region, ...]) -> None:
        self.cache, self.regions = cache, regions
        self.number = 0
        self.history: list[list[tuple[Scales, Features]]] = [[] for _ in regions]
        self.shapes: dict[int, torch.Size] = {}

    def evaluate(self, passes: Passes, x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
        number, steps = self.number, cond.run.steps
        self.number += 1
        if not number or self.cache.fresh(number, steps):
            record = Record(self.regions, self.cache.residual)
            denoised = passes(record, x_t, t, cond)
            self.shapes = record.shapes
            for history, value in zip(self.history, record.values, strict=True):
                history.append((t, each(torch.Tensor.detach, value)))
                del history[: -self.cache.kept]
            return denoised
        chosen = self.cache.choose(number, steps)
        value = self.cache.forecast(self.history[chosen], t)
        return passes(Reuse(self.regions[chosen], value, self.cache.residual, self.shapes), x_t, t, cond)


class Record(Pass):
    """A whole pass, of which the values at the ends of regions are kept.

    Args:
        regions: whose.
        residual: keep what a region adds to its input, in place of its output.

    Attributes:
        values: one a region, after the pass.
        shapes: of the output of each event of kind layer or keep.
    """

    def __init__(self, regions: tuple[Region, ...], residual: bool = False) -> None:
        self.regions, self.residual = regions, residual
        self.values: list[Features] = [None] * len(regions)
        self.shapes: dict[int, torch.Size] = {}
        self._inputs: dict[int, Features] = {}

    def layer(self, index: int, run: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...]) -> Tensor:
        out = run(x, *args)
        self.shapes[index] = out.shape
        for i, region in enumerate(self.regions):
            if index == region.start and self.residual:
                self._inputs[i] = x
            if not region.deep and index == region.stop - 1:
                self.values[i] = out - self._inputs[i] if self.residual else out
        return out

    def keep(self, index: int, skip: Tensor) -> Tensor:
        self.shapes[index] = skip.shape
        return skip

    def take(self, index: int, x: Any, skip: Tensor) -> tuple[Any, Tensor]:
        for i, region in enumerate(self.regions):
            if region.deep and index == region.stop:
                self.values[i] = x
        return x, skip


class Reuse(Pass):
    """A pass without a region.

    Args:
        region: that is left out.
        value: at its end.
        residual: the value is what is added to the region's input.
        shapes: of the outputs of a whole pass.
    """

    def __init__(self, region: Region, value: Features, residual: bool, shapes: dict[int, torch.Size]) -> None:
        self.region, self.value, self.residual, self.shapes = region, value, residual, shapes

    def layer(self, index: int, run: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...]) -> Tensor:
        region = self.region
        if not region.start <= index < region.stop:
            return run(x, *args)
        if region.deep:
            return blank(x, self.shapes[index])
        if index < region.stop - 1:
            return x
        return x + self.value if self.residual else self.value

    def take(self, index: int, x: Any, skip: Tensor) -> tuple[Any, Tensor]:
        return (self.value, skip) if self.region.deep and index == self.region.stop else (x, skip)


def blank(like: Tensor, shape: torch.Size) -> Tensor:
    """Zeros that take no memory, for places where nothing reads them.

    Args:
        like: gives dtype and device.
        shape: of the result.
    """
    return like.new_zeros(()).expand(shape)
