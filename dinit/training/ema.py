"""The exponential moving average of a network's weights, which is what gets sampled from and shipped."""

from __future__ import annotations

import copy

import torch
from torch import nn


def ema_decay(step: int, decay: float, warmup: bool = True) -> float:
    """The decay at update `step` (from 1): min(decay, (1 + step) / (10 + step)) while warming up."""
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


class EMA:
    """Averages parameters in float32 and copies buffers; never writes to the network that it follows.

    network: its parameters must stay the same tensors, as they do under every optimiser and under DDP.

    decay: in [0, 1). warmup: start with a short memory, so that the random first weights are soon forgotten.
    ValueError for a decay outside [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float = 0.999, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an EMA must be in [0, 1), got {decay}")
        self.decay, self.warmup = decay, warmup
        self.network = copy.deepcopy(network).float().eval().requires_grad_(False)
        # Listed once: walking a module tree at every step takes longer than the averaging.
        self._followed = (list(network.parameters()), list(network.buffers()))
        self._averages = (list(self.network.parameters()), list(self.network.buffers()))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """average = decay average + (1 - decay) weights, after optimiser step `step` (counted from 1)."""
        share = 1 - ema_decay(step, self.decay, self.warmup)
        (weights, buffers), (averages, copies) = self._followed, self._averages
        weights = [w.detach().to(a.dtype) for w, a in zip(weights, averages, strict=True)]
        torch._foreach_lerp_(averages, weights, share)  # pyright: ignore  (one kernel for all on a GPU)
        for ours, theirs in zip(copies, buffers, strict=True):
            ours.copy_(theirs)
