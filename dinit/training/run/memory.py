"""Memory estimates of a recipe, computed without allocating any: on torch's meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dinit.data import ImageData
from dinit.training.build import make_backbone, make_network
from dinit.training.finetune.transfer import adapt
from dinit.training.optimizer import by_muon
from dinit.training.recipe.model import Recipe

_HALF = ("bf16", "fp16")
_FRAGMENTS = 0.1  # of all: what the allocator cannot fill; 5 to 17 % on CPUs, see benchmarks/results/memory.md


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, besides those of the program itself.

    activations: None where the network cannot run without data; `note` is the reason. working: the most that
    activations, gradients and temporary tensors take at one time; gradients come while activations go.
    """

    parameters: int
    gradients: int
    optimizer: int
    averages: int
    activations: int | None
    working: int
    note: str = ""

    @property
    def total(self) -> int:
        """The peak of a training step."""
        return round((1 + _FRAGMENTS) * (self.parameters + self.optimizer + self.averages + self.working))


def estimate_memory(recipe: Recipe, data: ImageData, processes: int = 1) -> Memory:
    """The memory of training in each of `processes`.

    Activations are what the forward pass of one accumulated part keeps for the backward pass, and the working
    memory is the peak of both passes, both measured on the meta device; half of it in bf16 and fp16. With
    `training.sharding: fsdp2` everything but activations is divided by the processes.
    """
    with torch.device("meta"):
        backbone = make_backbone(recipe, data)
        if recipe.finetune is not None:
            adapt(backbone, recipe.finetune)
        network = make_network(recipe, backbone)
        if recipe.training.gradient_checkpointing:
            network.backbone.enable_gradient_checkpointing()
    whole = sum(_size(p) for p in network.parameters())
    trained = [p for p in network.parameters() if p.requires_grad]
    spread = processes if recipe.training.sharding == "fsdp2" else 1
    averaged = sum(4 * p.numel() for p in network.backbone.parameters())
    gradients = sum(map(_size, trained))
    activations, peak, note = _activations(recipe, data, network, processes)
    working = max(peak - (gradients - gradients // spread), activations or 0, gradients // spread)
    return Memory(
        parameters=whole // spread,
        gradients=gradients // spread,
        optimizer=_state(network, recipe.optimizer.kind) // spread,
        averages=averaged * (1 + len(recipe.ema.widths)) // spread,
        activations=activations,
        working=working,
        note=note,
    )


def _state(network: nn.Module, kind: str) -> int:
    """Bytes of the optimiser's state: two moments of AdamW, one of Lion, one of Muon where it is Muon's."""
    trained = sum(_size(p) for p in network.parameters() if p.requires_grad)
    once = {"adamw": 0, "lion": trained, "muon": sum(map(_size, by_muon(network)))}[kind]
    return 2 * trained - once


def _activations(
    recipe: Recipe, data: ImageData, network: nn.Module, processes: int
) -> tuple[int | None, int, str]:
    """What forward keeps, the peak of forward and backward, and why there is nothing, all of one part."""
    loop = recipe.training
    rows = max(loop.batch_size // loop.gradient_accumulation // processes, 1)
    size = data.image_size
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, int] = {}
    held: list[Any] = []  # alive until all is counted, so that no two share a key

    def pack(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in weights:
            kept[key] = max(kept.get(key, 0), tensor.untyped_storage().nbytes())
            held.append(tensor)
        return tensor

    def loss() -> Tensor:
        x = torch.empty(rows, data.channels, size, size)
        labels = torch.zeros(rows, dtype=torch.int64)
        return network(x, torch.zeros(rows), labels).prediction.float().square().mean()

    try:
        with torch.device("meta"):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                held.append(loss())
            with _Live(weights) as live:
                loss().backward()
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return None, 0, f"activations were not measured: {str(error).splitlines()[0]}"
    network.zero_grad()
    total, part = sum(kept.values()), 2 if loop.precision in _HALF else 1
    return total // part, live.peak // part, ""


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make, while they live.

    Args:
        known: Storages that are not counted.
    """

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = set(known)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
