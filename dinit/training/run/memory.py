"""Memory estimates of a recipe, computed without allocating any: on torch's meta device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinit.data import ImageData
from dinit.training.build import make_backbone, make_network
from dinit.training.finetune.transfer import adapt
from dinit.training.optimizer import by_muon
from dinit.training.recipe.model import Recipe

_HALF = ("bf16", "fp16")


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. activations: None where the network cannot run without data; `note` is the reason."""

    parameters: int
    gradients: int
    optimizer: int
    averages: int
    activations: int | None
    note: str = ""

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.optimizer + self.averages + (self.activations or 0)


def estimate_memory(recipe: Recipe, data: ImageData, processes: int = 1) -> Memory:
    """The memory of training in each of `processes`, without temporary buffers of single operations.

    Activations are what the forward pass of one accumulated part keeps for the backward pass, measured; half of it
    in bf16 and fp16. With `training.sharding: fsdp2` everything but activations is divided by the processes.
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
    activations, note = _activations(recipe, data, network, processes)
    return Memory(
        parameters=whole // spread,
        gradients=sum(map(_size, trained)) // spread,
        optimizer=_state(network, recipe.optimizer.kind) // spread,
        averages=averaged * (1 + len(recipe.ema.widths)) // spread,
        activations=activations,
        note=note,
    )


def _state(network: nn.Module, kind: str) -> int:
    """Bytes of the optimiser's state: two moments of AdamW, one of Lion, one of Muon where it is Muon's."""
    trained = sum(_size(p) for p in network.parameters() if p.requires_grad)
    once = {"adamw": 0, "lion": trained, "muon": sum(map(_size, by_muon(network)))}[kind]
    return 2 * trained - once


def _activations(recipe: Recipe, data: ImageData, network: nn.Module, processes: int) -> tuple[int | None, str]:
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

    try:
        with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            x = torch.empty(rows, data.channels, size, size)
            labels = torch.zeros(rows, dtype=torch.int64)
            held.append(network(x, torch.zeros(rows), labels).prediction.float().square().mean())
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        return None, f"activations were not measured: {str(error).splitlines()[0]}"
    total = sum(kept.values())
    return (total // 2 if loop.precision in _HALF else total), ""


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
