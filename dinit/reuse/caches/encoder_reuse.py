"""Faster Diffusion: the way down of a U is kept, and the way up is run at every step. Li et al. 2024."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Scales
from dinit.reuse.body import Body, Pass, Passes
from dinit.reuse.caches.base import CACHES, Cache, CacheState
from dinit.reuse.caches.deepcache import check_interval
from dinit.reuse.caches.region import Features, blank, each


@CACHES.register("encoder-reuse")
@dataclass(frozen=True)
class EncoderReuse(Cache):
    """Every `interval`-th evaluation runs the whole U, and those between only its way up, on the kept way down.

    The features of the way down change less from step to step than those of the way up. Li et al. 2024 (Faster
    Diffusion), arXiv:2312.09608. The last evaluations see the first state of the run again, as the paper adds it
    to theirs, where `noise` is above 0: it brings back texture that the kept features have smoothed. On processes
    other than VP the state is scaled to what it would be there.

    Args:
        interval: at least 1; 1 is no cache (neutral).
        noise: what share of the run's first state is added to the network's input in the second half of the steps,
            at least 0. The paper has 0.003.

    Raises:
        ValueError: a number out of its range; from `wrap`, a network without skip connections.
    """

    interval: int = 3
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_interval(self.interval)
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise must be at least 0, got {self.noise}")

    @property
    def neutral(self) -> bool:
        return self.interval == 1 and not self.noise

    def check(self, body: Body) -> None:
        body.deep(0, "encoder-reuse")

    def start(self, body: Body) -> CacheState:
        return _EncoderState(self, body.takes[0])


class _EncoderState(CacheState):
    def __init__(self, cache: EncoderReuse, first: int) -> None:
        self.cache, self.first = cache, first
        self.number = 0
        self.kept: _Record | None = None
        self.begun: Tensor | None = None

    def evaluate(self, passes: Passes, x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
        number, steps = self.number, cond.run.steps
        self.number += 1
        if self.cache.noise:
            size = _size(t, x_t)
            self.begun = x_t / size if self.begun is None else self.begun
            if steps is not None and 2 * number >= steps:
                x_t = x_t + self.cache.noise * size * self.begun
        if self.kept is None or number % self.cache.interval == 0:
            self.kept = _Record(self.first)
            return passes(self.kept, x_t, t, cond)
        return passes(_Reuse(self.kept), x_t, t, cond)


def _size(t: Scales, x_t: Tensor) -> Tensor | float:
    """sqrt(alpha^2 + sigma^2), which is 1 on VP."""
    k = t.factors if t.single else t.like(x_t)
    return (k.alpha**2 + k.sigma**2) ** 0.5


class _Record(Pass):
    """A whole pass of which the skips, and what goes up from the bottom, are kept."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.skips: dict[int, Tensor] = {}
        self.bottom: Features = None
        self.shapes: dict[int, torch.Size] = {}

    def layer(self, index: int, run: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...]) -> Tensor:
        out = run(x, *args)
        self.shapes[index] = out.shape
        return out

    def keep(self, index: int, skip: Tensor) -> Tensor:
        self.skips[index] = skip.detach()
        return skip

    def take(self, index: int, x: Any, skip: Tensor) -> tuple[Any, Tensor]:
        if index == self.first:
            self.bottom = each(torch.Tensor.detach, x)
        return x, skip


class _Reuse(Pass):
    """A pass of the way up alone."""

    def __init__(self, kept: _Record) -> None:
        self.kept = kept

    def layer(self, index: int, run: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...]) -> Tensor:
        return blank(x, self.kept.shapes[index]) if index < self.kept.first else run(x, *args)

    def keep(self, index: int, skip: Tensor) -> Tensor:
        return self.kept.skips[index]

    def take(self, index: int, x: Any, skip: Tensor) -> tuple[Any, Tensor]:
        return (self.kept.bottom, skip) if index == self.kept.first else (x, skip)
