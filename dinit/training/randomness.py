"""Random numbers of training samples: pure functions of (seed, position), with no state to save.

The k-th sample has the same noise, time and dropped label in a run of any number of processes, and in one resumed
at any step. Noise is drawn sample by sample, so a process draws only its own; times and dropped labels, a few
numbers, are drawn for the whole global batch, because stratification works on it.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dinit.data.order import hash_words, mix

# Keep the streams of one seed apart; part of what a recipe means, so never reorder.
_NOISE, _TIMES, _LABELS, _NETWORK, _CONDITION, _ROUTES = 101, 102, 103, 104, 105, 106


def noise(seed: int, start: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of the samples start .. start + shape[0] - 1, float32 on the CPU."""
    return _sample_by_sample(seed, _NOISE, start, shape, uniform=False)


def condition_noise(seed: int, start: int, shape: tuple[int, int], uniform: bool = False) -> Tensor:
    """(B, D) noise on the conditions of the samples start .. start + B - 1: standard normal, or in [-1, 1]."""
    drawn = _sample_by_sample(seed, _CONDITION, start, shape, uniform)
    return 2 * drawn - 1 if uniform else drawn


def token_scores(seed: int, start: int, shape: tuple[int, int]) -> Tensor:
    """(B, N) uniform numbers for the tokens of the samples start .. start + B - 1."""
    return _sample_by_sample(seed, _ROUTES, start, shape, uniform=True)


def _sample_by_sample(seed: int, stream: int, start: int, shape: tuple[int, ...], uniform: bool) -> Tensor:
    """Standard normal numbers, or uniform ones in [0, 1), a sample a generator; float32 on the CPU."""
    out = torch.empty(shape)
    generator = torch.Generator()
    for row, sample_seed in zip(out, _seeds(seed, stream, start, shape[0]), strict=True):
        generator.manual_seed(sample_seed)
        row.uniform_(generator=generator) if uniform else row.normal_(generator=generator)
    return out


def time_generator(seed: int, step: int) -> torch.Generator:
    """The generator that the times of optimiser step `step` come from."""
    return torch.Generator().manual_seed(_seed(seed, _TIMES, step))


def dropped_labels(seed: int, step: int, batch: int, probability: float) -> Tensor:
    """(batch,) bool: which samples of the global batch of a step are trained without their label."""
    generator = torch.Generator().manual_seed(_seed(seed, _LABELS, step))
    return torch.rand(batch, generator=generator) < probability


def network_seed(seed: int, rank: int) -> int:
    """The seed of torch's own generator in process `rank`, which dropout layers draw from."""
    return _seed(seed, _NETWORK, rank)


def _seed(seed: int, stream: int, number: int) -> int:
    return _seeds(seed, stream, number, 1)[0]


def _seeds(seed: int, stream: int, start: int, count: int) -> list[int]:
    """The seeds of the numbers start .. start + count - 1 of a stream."""
    numbers = np.arange(start, start + count, dtype=np.uint64)
    words = mix(mix(numbers) + np.uint64(hash_words(seed, stream)))
    return (words >> np.uint64(1)).tolist()  # 63 bits: manual_seed takes a signed word
