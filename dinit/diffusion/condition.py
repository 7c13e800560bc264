"""What a sample is conditioned on: label embeddings, and the noise source that condition noise draws from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


class Draws(Protocol):
    """Keyed normal noise (see dinit.samplers.noise.NoiseSource)."""

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Condition:
    """The condition of a batch, embedded once a run.

    embedding: (B, D), or (B, L, D) for a text of L tokens. null_embedding: (1, D) or (1, L, D), the embedding of
    the null class; None where the network has none.
    is_null: (B,) bool, rows that carry the null class. step: the number of the current sampling step. noise:
    where condition noise comes from (CADS); None where the caller has none. copies: how many times the batch of
    images is in here, above 1 once `joined`; the noise serves B / copies images.
    """

    embedding: Tensor
    null_embedding: Tensor | None
    is_null: Tensor
    step: int = 0
    noise: Draws | None = None
    copies: int = 1

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
        return replace(
            self,
            embedding=torch.cat([self.embedding, other.embedding]),
            is_null=torch.cat([self.is_null, other.is_null]),
            copies=self.copies + other.copies,
        )
