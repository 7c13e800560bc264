"""Noise sources: all randomness of sampling, keyed by (seed, image index, stream, number).

A draw is a function of its key alone, so the same seed gives the same image whatever the batch size, the order
of the images or the number of processes.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from dinit.arguments import shown
from dinit.devices import upload


@dataclass(frozen=True)
class NoiseSource:
    """Standard normal draws for a batch, a function of each image's key.

    Draws are made in float32 on the CPU, whatever dtype and device they are for, so that an image does not depend
    on either; PyTorch's number of threads share a large one.

    Args:
        keys: One (seed, image index) an image.
    """

    keys: tuple[tuple[int, int], ...]

    @classmethod
    def from_seed(cls, seed: int | Sequence[int], batch: int, start: int = 0) -> NoiseSource:
        """The noise source of one seed, or of one seed an image.

        Args:
            seed: One seed, for images start, start + 1, ... of it; a sequence, for image 0 of each seed.
            batch: Number of images.
            start: Index of the first image of one seed.

        Returns:
            A NoiseSource of `batch` keys.

        Raises:
            ValueError: Another number of seeds than images; seeds that are no whole numbers.
        """
        if hasattr(seed, "tolist"):  # a scalar or an array of another library
            seed = seed.tolist()  # pyright: ignore[reportAttributeAccessIssue]
        if isinstance(seed, int) and not isinstance(seed, bool):
            return cls(tuple((seed, start + i) for i in range(batch)))
        if isinstance(seed, str) or not isinstance(seed, Sequence):
            advice = "; a torch.Generator goes into a pipeline's generator=" if hasattr(seed, "manual_seed") else ""
            raise ValueError(f"seed must be a whole number, or one an image, got {shown(seed)}{advice}")
        if len(seed) != batch:
            raise ValueError(f"give one seed, or one for each of {batch} images; got {len(seed)}")
        for one in seed:
            if isinstance(one, bool) or not hasattr(one, "__index__"):
                raise ValueError(f"seed must be a whole number, or one an image, got {shown(one)} in it")
        return cls(tuple((int(s), 0) for s in seed))

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        """One draw for the batch.

        Args:
            stream: The purpose of the draw, as 'step'.
            number: Of the draw within its stream.
            like: (B, ...), whose shape, dtype and device the draw takes.

        Returns:
            (B, ...) standard normal.

        Raises:
            ValueError: Another batch than the number of keys.
        """
        if like.shape[0] != len(self.keys):
            raise ValueError(
                f"this noise source has {len(self.keys)} keys, for as many images; got {like.shape[0]}"
            )
        draws = np.empty(tuple(like.shape), np.float32)
        threads = min(torch.get_num_threads(), len(draws)) if draws.size >= _LARGE else 1
        ends = [len(draws) * k // threads for k in range(threads + 1)]

        def fill(first: int, end: int) -> None:
            for (seed, index), row in zip(self.keys[first:end], draws[first:end], strict=True):
                _at_key(f"{seed}/{index}/{stream}/{number}").standard_normal(dtype=np.float32, out=row)

        others = [_pool(threads - 1).submit(fill, *part) for part in pairwise(ends[1:])]  # NumPy frees the GIL
        fill(0, ends[1])
        for one in others:
            one.result()
        return upload(torch.from_numpy(draws), like.device, like.dtype)


_LARGE = 1 << 16  # numbers of a draw, over half a millisecond of them, which threads share
_pools: dict[int, ThreadPoolExecutor] = {}
# A fork has none of its parent's threads: a pool would wait for them for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)


def _pool(workers: int) -> ThreadPoolExecutor:
    return _pools.setdefault(workers, ThreadPoolExecutor(workers, "dinit-noise"))  # without threads before its use


class _Generators(threading.local):
    """One generator a thread, moved from key to key: making one costs ten times as much."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)
        self.generator = np.random.Generator(self.philox)
        self.start = self.philox.state


_GENERATORS = _Generators()


def _at_key(key: str) -> np.random.Generator:
    """This thread's generator, at the beginning of the key's numbers."""
    # Not torch's CPU generator: it keeps 32 bits of its seed, so that among 50,000 images two would share their
    # noise with a chance of one in four. Philox takes a key of 128.
    digest = hashlib.blake2b(key.encode(), digest_size=16).digest()
    state = _GENERATORS.start
    state["state"]["key"] = np.frombuffer(digest, "<u8")
    _GENERATORS.philox.state = state
    return _GENERATORS.generator


class RecordedNoise:
    """A noise source that replays recorded draws.

    Args:
        **streams: A stream's name to its draws by number, each (B, ...).
    """

    def __init__(self, **streams: Sequence[Tensor] | Tensor) -> None:
        self.streams: Mapping[str, Sequence[Tensor] | Tensor] = streams

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        """The recorded draw.

        Args:
            stream: Name of the stream.
            number: Of the draw within its stream.
            like: (B, ...), whose dtype and device the draw takes.

        Returns:
            (B, ...) of like's shape.

        Raises:
            ValueError: Nothing was recorded under this number, or a draw of another shape.
        """
        draws = self.streams.get(stream, ())
        if number >= len(draws):
            raise ValueError(f"no draw {number} was recorded for {stream!r}; it holds {len(draws)}")
        if draws[number].shape != like.shape:
            raise ValueError(
                f"the draw recorded for {stream!r} has shape {tuple(draws[number].shape)}, the state has "
                f"{tuple(like.shape)}: record draws of this batch and size"
            )
        return upload(draws[number], like.device, like.dtype)
