"""Caches, the contract: a denoiser whose network runs a part of its blocks, from what it kept of earlier steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from dinit.diffusion import BackboneDenoiser, Condition, Denoised, Denoiser, Scales, WrappedDenoiser
from dinit.registry import Registry
from dinit.reuse.body import BlockCounts, Body, Passes, body_of, of_network

CACHES: Registry[type[Cache]] = Registry("cache", "dinit.reuse.caches")


class CacheState(ABC):
    """What a cache keeps in one run, of the evaluations of one place in a step."""

    @abstractmethod
    def evaluate(self, passes: Passes, x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
        """The prediction of the next evaluation.

        Args:
            passes: of the network.
            x_t: (B, C, H, W).
            t: one time, or one a sample.
            cond: of the batch.
        """


class Cache(ABC):
    """Settings of a cache: subclasses are frozen dataclasses, and have a neutral setting, which is no cache.

    It wraps the network's own denoiser, below all guidance. What it keeps belongs to the run: two runs, and the
    batches of one call, share nothing. Evaluations that follow each other within a step (of a solver of order 2,
    or of two conditions) have a state each, and so has every size of batch.
    """

    @property
    @abstractmethod
    def neutral(self) -> bool:
        """Whether every evaluation runs the whole network."""

    @abstractmethod
    def check(self, body: Body) -> None:
        """ValueError where the network lacks the blocks that this cache needs.

        Args:
            body: of the network.
        """

    @abstractmethod
    def start(self, body: Body) -> CacheState:
        """A new state.

        Args:
            body: of the network.
        """

    def wrap(self, denoiser: Denoiser, counts: BlockCounts | None = None) -> Denoiser:
        """The denoiser with this cache.

        Args:
            denoiser: of a network, without guidance; it is not changed.
            counts: where the blocks that are run are counted, if they are to be.

        Raises:
            ValueError: a denoiser of something else, a network that lacks what this cache needs.
        """
        if self.neutral and counts is None:
            return denoiser
        return of_network(denoiser, lambda network: CachedDenoiser(network, self, counts), type(self).__name__)


class CachedDenoiser(WrappedDenoiser):
    """A denoiser with a cache.

    Args:
        inner: of the network.
        cache: whose states are used.
        counts: where the blocks that are run are counted.

    Raises:
        ValueError: a network that lacks what the cache needs.
    """

    inner: BackboneDenoiser

    def __init__(self, inner: BackboneDenoiser, cache: Cache, counts: BlockCounts | None = None) -> None:
        super().__init__(inner)
        self.cache, self.body = cache, body_of(inner.backbone)
        self.counts = counts
        cache.check(self.body)

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        scales, run = self.scales(t), cond.run
        visits = run.states.get((self, x_t.shape), _Visits)
        place = visits.place(run.step)
        state = run.states.get((self, x_t.shape, place), lambda: self.cache.start(self.body))
        passes = run.states.get((self, "passes"), lambda: Passes(self.inner, self.body, self.counts))
        return state.evaluate(passes, x_t, scales, cond)


@dataclass
class _Visits:
    """How often a step has evaluated the network."""

    step: int = -1
    count: int = 0

    def place(self, step: int) -> int:
        """The number of this evaluation in its step."""
        self.count = self.count + 1 if step == self.step else 0
        self.step = step
        return self.count
