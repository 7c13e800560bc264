"""Weights spread over processes (FSDP2): each holds a part of every tensor; files always hold whole ones.

torch's `fully_shard` under the processes that Accelerate launched. It works on CPUs with gloo as well, where
Accelerate's own plugin for it is passed over.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


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
    """This process's part of a tensor, sharing its memory; the tensor itself where it is not spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, without its gradient. All processes must ask for the same tensors in the same order."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def put(target: Tensor, value: Tensor) -> None:
    """Writes a whole tensor into `target`, which may be spread: each process takes its own part of it."""
    with torch.no_grad():
        target.copy_(like(value.to(target.device, target.dtype), target))


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor that every process has, spread as `target` is."""
    if not isinstance(target, DTensor):
        return value
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
