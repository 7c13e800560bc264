"""What a sample is conditioned on: label embeddings, and the noise source that condition noise draws from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor


class SupportsNormal(Protocol):
    """Keyed normal noise (see dinit.samplers.noise.NoiseSource)."""

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Condition:
    """The condition of a batch, embedded once a run.

    embedding: (B, D), or (B, L, D) for a text of L tokens. null_embedding: (1, D) or (1, L, D), the embedding of
    the null class; None where the network has none.
    is_null: (B,) bool, rows that carry the null class. step: the number of the current sampling step. noise:
    where condition noise comes from (CADS); None where the caller has none. copies: how many times the batch of
    images is in here, above 1 once `joined`; the noise serves B / copies images. labels: (B,) int64, the classes
    that the rows stand for, except rows of the null class; None where the caller has none. steps: how many network
    levels the run has, None outside a run. memory: what a guidance keeps from one step of this run to the next,
    under a key of its own; every condition that is derived from this one shares it.
    """

    embedding: Tensor
    null_embedding: Tensor | None
    is_null: Tensor
    step: int = 0
    noise: SupportsNormal | None = None
    copies: int = 1
    labels: Tensor | None = None
    steps: int | None = None
    memory: dict[Any, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def batch(self) -> int:
        return self.embedding.shape[0]

    def null(self) -> Condition:
        """The same batch conditioned on the null class. ValueError where the network has none."""
        if self.null_embedding is None:
            raise ValueError("this network was trained without a null class, and has no unconditional prediction")
        return replace(
            self,
            embedding=self.null_embedding.expand_as(self.embedding),
            is_null=torch.ones_like(self.is_null),
        )

    def joined(self, other: Condition) -> Condition:
        """Both batches as one of twice the size, for a single forward pass."""
        labelled = self.labels is not None and other.labels is not None
        return replace(
            self,
            embedding=torch.cat([self.embedding, other.embedding]),
            is_null=torch.cat([self.is_null, other.is_null]),
            copies=self.copies + other.copies,
            labels=torch.cat([self.labels, other.labels]) if labelled else None,  # pyright: ignore
        )
