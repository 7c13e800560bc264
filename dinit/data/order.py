"""Sample order: which image is read when, as pure functions of (seed, position), so that a run resumes exactly.

No generator has a state to save. The k-th sample of a run, counted from 0 over all epochs, is known from the seed
and k alone, on every platform and with every number of workers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of SplitMix64


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Output function of SplitMix64, a bijection of 64-bit words. Steele, Lea & Flood 2014. Any shape.

    numpy's and torch's own generators may change their streams between versions; this one cannot.
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_words(*words: int) -> int:
    """Hash of several integers (modulo 2^64) to one 64-bit word; their order matters."""
    state = 0
    for word in words:
        state = (state + _GOLDEN) & _WORD
        state = int(mix(np.array([state ^ (word & _WORD)], dtype=np.uint64))[0])
    return state


@lru_cache(maxsize=4)
def epoch_order(seed: int, epoch: int, n: int) -> NDArray[np.int64]:
    """Permutation of 0 .. n - 1 in which one epoch reads n samples.

    Args:
        seed: of the run.
        epoch: from 0.
        n: number of samples.

    Returns:
        (n,) int64, read-only.

    Raises:
        ValueError: n < 1 or a negative epoch.
    """
    if n < 1 or epoch < 0:
        raise ValueError(f"an epoch's order needs n >= 1 samples and epoch >= 0, got n={n}, epoch={epoch}")
    start = np.uint64(hash_words(seed, epoch))
    keys = mix(start + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
    order = np.argsort(keys, kind="stable")  # keys of one epoch are distinct: `mix` is a bijection
    order.flags.writeable = False
    return order


def sample_indices(seed: int, start: int, count: int, n: int) -> list[int]:
    """Data-set indices of the samples start .. start + count - 1 of a run over n images.

    Sample k is entry k % n of epoch k // n, so each epoch reads every image once.

    Args:
        seed: of the run.
        start: position of the first sample, counted over all epochs.
        count: number of samples.
        n: images of the data set.

    Returns:
        `count` indices in 0 .. n - 1.

    Raises:
        ValueError: n < 1, or a negative start or count.
    """
    return read_positions(lambda epoch: epoch_order(seed, epoch, n), start, count, n)


def read_positions(order: Callable[[int], NDArray[np.int64]], start: int, count: int, n: int) -> list[int]:
    """Indices at positions start .. start + count - 1 of consecutive epochs. order: that of an epoch, (n,).

    ValueError for a negative start or count.
    """
    if start < 0 or count < 0:
        raise ValueError(f"start and count must be >= 0, got start={start}, count={count}")
    indices: list[int] = []
    while len(indices) < count:
        epoch, offset = divmod(start + len(indices), n) if n > 0 else (0, 0)
        indices += order(epoch)[offset : offset + count - len(indices)].tolist()
    return indices


def sample_key(seed: int, position: int) -> int:
    """Augmentation key of one sample of a run, for `ImageData.sample(index, key)`.

    Args:
        seed: of the run.
        position: of the sample, counted over all epochs.
    """
    return hash_words(seed, position, 1)  # the 1 keeps it apart from epoch_order's words


def stratified(labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Mask (N,) of round(share · count) samples of each class, drawn by the seed. labels: (N,)."""
    marked = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        marked[members[epoch_order(seed, int(label), len(members))[: round(share * len(members))]]] = True
    return marked
