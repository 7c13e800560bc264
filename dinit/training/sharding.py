"""Weights sharded over processes (FSDP2): each holds a part of every tensor; files always hold whole ones.

torch's `fully_shard` under the processes that Accelerate launched. It works on CPUs with gloo as well, where
Accelerate's own plugin for it is skipped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def shard(network: nn.Module, device: torch.device, processes: int) -> None:
    """Spreads the parameters over all processes, in place: block by block, then what no block holds.

    A block is an entry of a ModuleList; its weights are gathered when it runs, so memory holds one at a time.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    for block in _blocks(network):
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _blocks(module: nn.Module) -> Iterable[nn.Module]:
    """The outermost entries of ModuleLists that have weights and can be called."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for entry in child:
                if isinstance(entry, nn.ModuleList):
                    yield from _blocks(entry)
                elif any(True for _ in entry.parameters()):
                    yield entry
        else:
            yield from _blocks(child)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; the tensor itself where it is not sharded."""
    sharded: Any = tensor
    return sharded.to_local() if _is_sharded(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, without its gradient. All processes must ask for the same tensors in the same order."""
    detached: Any = tensor.detach()
    return detached.full_tensor() if _is_sharded(tensor) else detached


def put(target: Tensor, value: Tensor) -> None:
    """Writes a whole tensor into `target`, which may be sharded: each process takes its own part of it.

    ValueError for another shape.
    """
    if value.shape != target.shape:
        raise ValueError(f"a tensor of shape {tuple(value.shape)} where {tuple(target.shape)} is needed")
    with torch.no_grad():
        target.copy_(like(value.to(target.device, target.dtype), target))


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor that every process has, sharded as `target` is."""
    if not _is_sharded(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = target
    return distribute_tensor(value, sharded.device_mesh, sharded.placements, src_data_rank=None)


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor; its module takes two seconds to import
