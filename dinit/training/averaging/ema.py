"""Exponential moving average (EMA) of a network's weights, which sampling uses."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dinit.training.sharding import local, put, whole


def ema_decay(step: int, decay: float, warmup: bool = True) -> float:
    """The decay at update `step` (from 1): min(decay, (1 + step) / (10 + step)) while warming up."""
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


class EMA:
    """Exponential moving average of a network's parameters, in float32; buffers are copied.

    The network itself is never written to.

    Args:
        network: Its parameters must stay the same tensors, as they do under every optimiser and under DDP.
        decay: In [0, 1).
        warmup: Start with smaller decays, min(decay, (1 + step) / (10 + step)), which soon remove the random first
            weights from the average.
        sharded: The parameters are sharded over processes (FSDP2). Then the averages are too, and `network` is not
            available.

    Raises:
        ValueError: decay is outside [0, 1).
    """

    def __init__(
        self, network: nn.Module, decay: float = 0.999, warmup: bool = True, sharded: bool = False
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an EMA must be in [0, 1), got {decay}")
        self.decay, self.warmup = decay, warmup
        self._network = None if sharded else copy.deepcopy(network).float().eval().requires_grad_(False)
        weights, buffers = dict(network.named_parameters()), dict(network.named_buffers())
        if self._network is not None:
            averages, copies = dict(self._network.named_parameters()), dict(self._network.named_buffers())
        else:
            averages = {name: weight.detach().float().clone() for name, weight in weights.items()}
            copies = {name: buffer.detach().clone() for name, buffer in buffers.items()}
        self._kept = {**averages, **copies}
        self._saved = set(network.state_dict())  # without buffers that are never saved
        # Listed once: walking a module tree at every step takes longer than the averaging.
        self._weights, self._averages = [local(w) for w in weights.values()], [local(a) for a in averages.values()]
        self._buffers, self._copies = list(buffers.values()), list(copies.values())

    @property
    def network(self) -> nn.Module:
        """The averaged network, in evaluation mode. RuntimeError where its weights are sharded over processes."""
        if self._network is None:
            raise RuntimeError("weights are sharded over processes; build a network from `state`")
        return self._network

    @torch.no_grad()
    def update(self, step: int) -> None:
        """average = decay average + (1 - decay) weights, after optimiser step `step` (counted from 1)."""
        share = 1 - ema_decay(step, self.decay, self.warmup)
        weights = [w.detach().to(a.dtype) for w, a in zip(self._weights, self._averages, strict=True)]
        torch._foreach_lerp_(self._averages, weights, share)  # pyright: ignore  (one kernel for all on a GPU)
        for ours, theirs in zip(self._copies, self._buffers, strict=True):
            ours.copy_(theirs)

    def state(self) -> dict[str, Tensor]:
        """The averaged network's state dict, of whole tensors. With sharded weights, call it in all processes."""
        return {name: whole(value) for name, value in self._kept.items() if name in self._saved}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Restore the averages from a `state`. KeyError where a tensor is missing."""
        for name in self._saved & self._kept.keys():
            put(self._kept[name], state[name])
