"""All randomness of sampling, keyed by (seed, image index, stream, number).

A draw is a function of its key alone, so the same seed gives the same image whatever the batch size, the order
of the images or the number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class NoiseSource:
    """Standard normal draws for a batch. keys: one (seed, image index) a sample.

    Draws are made in float32 on the CPU, whatever dtype and device they are wanted in, so that an image does
    not depend on either.
    """

    keys: tuple[tuple[int, int], ...]

    @classmethod
    def from_seed(cls, seed: int | Sequence[int], batch: int, start: int = 0) -> NoiseSource:
        """One seed: images start, start + 1, ... of that seed. A sequence: image 0 of each seed.

        ValueError where the number of seeds is not the batch.
        """
        if isinstance(seed, int):
            return cls(tuple((seed, start + i) for i in range(batch)))
        if len(seed) != batch:
            raise ValueError(f"give one seed, or one for each of {batch} images; got {len(seed)}")
        return cls(tuple((int(s), 0) for s in seed))

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        """(B, ...) of like's shape, dtype and device. stream: the purpose; number: counts within the stream.

        ValueError where like's batch is not the number of keys.
        """
        if like.shape[0] != len(self.keys):
            raise ValueError(f"this noise source serves {len(self.keys)} images, not {like.shape[0]}")
        shape = tuple(like.shape[1:])
        draws = np.stack([_generator(*key, stream, number).standard_normal(shape, np.float32) for key in self.keys])
        return torch.from_numpy(draws).to(device=like.device, dtype=like.dtype)


def _generator(seed: int, index: int, stream: str, number: int) -> np.random.Generator:
    # Not torch's CPU generator: it keeps 32 bits of its seed, so that among 50,000 images two would share their
    # noise with a chance of one in four. Philox takes a key of 128.
    digest = hashlib.blake2b(f"{seed}/{index}/{stream}/{number}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class RecordedNoise:
    """Replays recorded draws: streams maps a stream's name to its draws [number], each (B, ...)."""

    def __init__(self, **streams: Sequence[Tensor] | Tensor) -> None:
        self.streams: Mapping[str, Sequence[Tensor] | Tensor] = streams

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        """The recorded draw. ValueError where nothing, or another shape, was recorded for it."""
        draws = self.streams.get(stream, ())
        if number >= len(draws):
            raise ValueError(f"no draw {number} was recorded for {stream!r}; it holds {len(draws)}")
        if draws[number].shape != like.shape:
            raise ValueError(
                f"the draw recorded for {stream!r} has shape {tuple(draws[number].shape)}, "
                f"{tuple(like.shape)} is wanted"
            )
        return draws[number].to(device=like.device, dtype=like.dtype)
