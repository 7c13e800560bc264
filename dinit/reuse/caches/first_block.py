"""First-block cache: the change of the first block decides whether the others are run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Scales
from dinit.reuse.body import Body, Pass, Passes, Region
from dinit.reuse.caches.base import CACHES, Cache, CacheState
from dinit.reuse.caches.region import Features, blank, each
from dinit.samplers.guidance.base import non_batch_dims


@CACHES.register("first-block")
@dataclass(frozen=True)
class FirstBlockCache(Cache):
    """The blocks after the first are left out while what the first one gives has changed little.

    The change is that of the first block's residual, in a U-shaped network of the features that the outermost skip
    carries, as mean absolute difference from the last whole evaluation over mean absolute value (TeaCache, Liu et
    al. 2024, arXiv:2411.19108, has such a threshold; ParaAttention has the first block's). Every image decides for
    itself, so that it does not depend on its batch; blocks are run for the whole batch where one image needs them.
    The decision is read back from the device once an evaluation, and the host waits for it.

    Args:
        threshold: at least 0, of the relative change; 0 is no cache (neutral).
        longest: evaluations in a row that may leave the blocks out, at least 1; None for any number.

    Raises:
        ValueError: a number out of its range; from `wrap`, a network without such blocks.
    """

    threshold: float = 0.1
    longest: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.threshold < math.inf:
            raise ValueError(f"threshold must be at least 0 (0 is no cache), got {self.threshold}")
        if self.longest is not None and self.longest < 1:
            raise ValueError(f"longest must be at least 1, or None for any number, got {self.longest}")

    @property
    def neutral(self) -> bool:
        return self.threshold == 0

    def region(self, body: Body) -> Region:
        """What is left out; ValueError where the network lacks it. Argument: as of `check`."""
        if body.takes:
            return body.deep(0, "first-block")
        return body.chain(1, len(body.blocks), "first-block")

    def check(self, body: Body) -> None:
        self.region(body)

    def start(self, body: Body) -> CacheState:
        return _FirstBlockState(self, self.region(body))


class _FirstBlockState(CacheState):
    """What was last computed, for each row: the sign of change, and the value at the region's end."""

    def __init__(self, cache: FirstBlockCache, region: Region) -> None:
        self.cache, self.region = cache, region
        self.sign: Tensor | None = None
        self.value: Features = None
        self.since: Tensor | None = None
        self.shapes: dict[int, torch.Size] = {}

    def evaluate(self, passes: Passes, x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
        return passes(_Deciding(self), x_t, t, cond)

    def stale(self, sign: Tensor) -> Tensor | None:
        """(B,) bool, the rows that have changed too much; None where all have, without a read-back."""
        if self.sign is None or self.since is None:
            return None
        axes = non_batch_dims(sign)
        change = (sign - self.sign).abs().mean(axes) / self.sign.abs().mean(axes)
        stale = ~(change < self.cache.threshold)
        return stale if self.cache.longest is None else stale | (self.since >= self.cache.longest)

    def updated(self, stale: Tensor | None, sign: Tensor, value: Features) -> None:
        """Keep what the stale rows have computed."""
        if stale is None or self.sign is None or self.since is None:
            self.sign, self.value = sign, value
            self.since = torch.zeros(len(sign), dtype=torch.int64, device=sign.device)
            return
        self.sign, self.value = (
            _rows(stale, sign, self.sign),
            each(lambda new, old: _rows(stale, new, old), value, self.value),
        )
        self.since = torch.where(stale, 0, self.since + 1)


class _Deciding(Pass):
    """A pass that leaves the region out if no row needs it, and takes the values of the rows that need none."""

    def __init__(self, state: _FirstBlockState) -> None:
        self.state, self.region = state, state.region
        self.stale: Tensor | None = None
        self.left_out = False
        self.sign: Tensor | None = None
        self.entry: Tensor | None = None

    def _decide(self, sign: Tensor) -> None:
        self.sign = sign.detach()
        self.stale = self.state.stale(self.sign)
        self.left_out = self.stale is not None and not bool(self.stale.any())

    def _end(self, fresh: Features, kept: Features, value: Features) -> Features:
        """The features at the region's end: those just computed in rows that needed it, the kept ones in others.

        fresh: those of this pass, if it ran the region. kept: those that the last value gives. value: to keep.
        """
        state, stale = self.state, self.stale
        assert self.sign is not None, "decided at the region's start"
        if self.left_out:
            assert state.since is not None, "a whole evaluation came before"
            state.since = state.since + 1
            return kept
        state.updated(stale, self.sign, each(torch.Tensor.detach, value))
        return fresh if stale is None else each(lambda new, old: _rows(stale, new, old), fresh, kept)

    def layer(self, index: int, run: Callable[..., Tensor], x: Tensor, args: tuple[Any, ...]) -> Tensor:
        region, state = self.region, self.state
        if not region.start <= index < region.stop:
            out = run(x, *args)
            if not region.deep and index == region.start - 1:
                self._decide(out - x)
                self.entry = out
            return out
        if region.deep:
            if self.left_out:
                return blank(x, state.shapes[index])
            out = run(x, *args)
            state.shapes[index] = out.shape
            return out
        out = x if self.left_out else run(x, *args)
        if index < region.stop - 1:
            return out
        assert self.entry is not None, "set before the region"
        kept = out if state.value is None else self.entry + state.value
        return self._end(out, kept, out - self.entry)

    def keep(self, index: int, skip: Tensor) -> Tensor:
        if self.region.deep and index == self.region.start - 1:
            self._decide(skip)
        return skip

    def take(self, index: int, x: Any, skip: Tensor) -> tuple[Any, Tensor]:
        if not self.region.deep or index != self.region.stop:
            return x, skip
        return self._end(x, self.state.value, x), skip


def _rows(mask: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Rows of `one` where the mask is true, of `other` elsewhere."""
    return torch.where(mask.reshape(-1, *(1,) * (one.ndim - 1)), one, other)
