"""The exponential moving average of a network's weights, which is what gets sampled from and shipped."""

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
    """Averages parameters in float32 and copies buffers; never writes to the network that it follows.

    network: its parameters must stay the same tensors, as they do under every optimiser and under DDP. Where they
    are spread over processes, so are the averages, and `network` cannot be asked for.

    decay: in [0, 1). warmup: start with a short memory, so that the random first weights are soon forgotten.
    ValueError for a decay outside [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float = 0.999, warmup: bool = True, spread: bool = False) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an EMA must be in [0, 1), got {decay}")
        self.decay, self.warmup = decay, warmup
        self._network = None if spread else copy.deepcopy(network).float().eval().requires_grad_(False)
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
        """The averaged network, in evaluation mode. RuntimeError where its weights are spread over processes."""
        if self._network is None:
            raise RuntimeError("weights are spread over processes; build a network from `state`")
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
        """The averaged network's state dict, of whole tensors. Asked in all processes where they are spread."""
        return {name: whole(value) for name, value in self._kept.items() if name in self._saved}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `state` gave. KeyError where a tensor is missing."""
        for name in self._saved & self._kept.keys():
            put(self._kept[name], state[name])
