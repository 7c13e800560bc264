"""Conditions of a batch, and the context of the sampling run that they are used in."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


class SupportsNormal(Protocol):
    """Keyed standard normal noise; `dinit.samplers.noise.NoiseSource` is the usual one."""

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        """Draw standard normal noise of like's shape (B, ...), dtype and device.

        Args:
            stream: The purpose of the draw; draws of different streams are independent.
            number: Counts the draws within the stream, from 0.
            like: Gives shape, dtype and device.
        """
        ...


class GuidanceStates:
    """What guidances keep from one evaluation of a run to the next (APG's momentum).

    A guided denoiser itself never changes, so that any number of runs and threads may share it. Each run has one
    such object, made by the driver, and every guidance has its own entry in it.
    """

    def __init__(self) -> None:
        self._states: dict[Hashable, Any] = {}

    def get(self, owner: Hashable, make: Callable[[], State]) -> State:
        """The state of `owner` in this run.

        Args:
            owner: Whose state it is: an object that only one guided denoiser has, alone or in a tuple.
            make: Makes the state at the first call.
        """
        if owner not in self._states:
            self._states[owner] = make()
        return self._states[owner]


@dataclass(frozen=True)
class RunContext:
    """The sampling run that a denoiser is evaluated in.

    Args:
        step: Number of the current sampling step, from 0.
        steps: Sampling steps of the run; None outside a run.
        noise_source: Where condition noise is drawn from (CADS); None where the caller has none.
        copies: How many times the batch of images is in the current batch; above 1 where several conditions share
            one forward pass. The noise source serves batch / copies images.
        states: What guidances keep from one evaluation to the next, shared by all steps of the run.
    """

    step: int = 0
    steps: int | None = None
    noise_source: SupportsNormal | None = None
    copies: int = 1
    states: GuidanceStates = field(default_factory=GuidanceStates, compare=False, repr=False)


@dataclass(frozen=True)
class Condition:
    """The condition of a batch, embedded once a run.

    Args:
        embedding: (B, D), or (B, L, D) for a text of L tokens.
        null_embedding: (1, D) or (1, L, D), the embedding of the null class; None where the network has none.
        is_null: (B,) bool, true for rows of the null class.
        labels: (B,) int64, the class of each row, except rows of the null class; None where the caller has none.
        run: The run that the condition is used in. A condition outside a run has a context of its own.
    """

    embedding: Tensor
    null_embedding: Tensor | None
    is_null: Tensor
    labels: Tensor | None = None
    run: RunContext = field(default_factory=RunContext, compare=False, repr=False)

    @property
    def batch(self) -> int:
        """The number of rows B."""
        return self.embedding.shape[0]

    def in_run(self, run: RunContext) -> Condition:
        """The same condition in another run."""
        return _with(self, run=run)

    def at_step(self, step: int) -> Condition:
        """The same condition at another step of its run."""
        return _with(self, run=_with(self.run, step=step))

    def null(self) -> Condition:
        """The same batch conditioned on the null class.

        Raises:
            ValueError: The network was trained without a null class.
        """
        if self.null_embedding is None:
            raise ValueError("this network was trained without a null class, and has no unconditional prediction")
        return replace(
            self,
            embedding=self.null_embedding.expand_as(self.embedding),
            is_null=torch.ones_like(self.is_null),
        )

    def joined(self, other: Condition) -> Condition:
        """Both batches as one of twice the size, for a single forward pass.

        Args:
            other: A condition of the same run.
        """
        labels = None
        if self.labels is not None and other.labels is not None:
            labels = torch.cat([self.labels, other.labels])
        return replace(
            self,
            embedding=torch.cat([self.embedding, other.embedding]),
            is_null=torch.cat([self.is_null, other.is_null]),
            labels=labels,
            run=replace(self.run, copies=self.run.copies + other.run.copies),
        )


Record = TypeVar("Record", RunContext, Condition)


def _with(record: Record, **changed: Any) -> Record:
    """As dataclasses.replace, ten times as fast: every step of a run has its own condition."""
    other = object.__new__(type(record))
    other.__dict__.update(record.__dict__, **changed)
    return other
