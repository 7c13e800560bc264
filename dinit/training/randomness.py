"""What is drawn for each training sample: pure functions of (seed, position), with no state to save.

A run of any number of processes, and a run resumed at any step, sees the same noise, times and dropped labels
for the k-th sample. Noise is drawn sample by sample, so a process draws only its own share; times and dropped
labels are drawn for the whole global batch, because stratification spreads over it, and cost a few numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dinit.data.order import hash_words

# Keep the streams of one seed apart; part of what a recipe means, so never reorder.
_NOISE, _TIMES, _LABELS, _NETWORK = 101, 102, 103, 104


def noise(seed: int, start: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise of the samples start .. start + shape[0] - 1, float32 on the CPU."""
    out = torch.empty(shape)
    generator = torch.Generator()
    for i, row in enumerate(out):
        generator.manual_seed(_seed(seed, _NOISE, start + i))
        row.normal_(generator=generator)
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
    return hash_words(seed, stream, number) >> 1  # 63 bits: manual_seed takes a signed word
