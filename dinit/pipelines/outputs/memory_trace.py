"""Record of the memory that a network makes and frees, taken without an evaluation.

A module runs once on tensors that have a device and a shape but no numbers (torch's FakeTensorMode), so that the
record is that of the kernels which the device would run; what surrounds it runs on the meta device.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dinit.memory import heap_size

_FRAGMENTS = 0.1  # of all, where the allocator is not measured: what it cannot fill
_PINS = 0.07  # of what malloc is measured to take: what small objects between the tensors cut off
_LEAST = 0.3  # of the tensors, which glibc's malloc takes more than them: 0.25 to 0.5, benchmarks/results/memory.md
_NEAR = 0.8  # of the peak; below it the allocator need not be measured
_HOLES = [1 << k for k in range(25, 14, -1)]  # 32 MiB to 32 KiB

Block = tuple[int, int]  # number and bytes


class Fakes:
    """A module whose tensors have no numbers."""

    def __init__(self, module: nn.Module) -> None:
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        memo: dict[int, Any] = {id(one): self.mode.from_tensor(one) for one in tensors_of(module)}
        self.module: Any = copy.deepcopy(module, memo).eval()
        self.found: dict[Hashable, tuple[list[Block], int, Tensor]] = {}


class Trace(TorchDispatchMode):
    """Blocks of memory as operations make and free them.

    Attributes:
        events: (number, bytes) of each block as it is made, and (-number, bytes) as it is freed.
        now: bytes that are held.
        peak: the most that were.
        outer: the same, but for what modules with a record took.
        inner: the most that one call of a module took, by what it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Block] = []
        self.now = self.peak = self.outer = 0
        self.inner: dict[str, int] = {}
        self.paused = False
        self._count, self._known = 0, set[int]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if self.paused:
            return made
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._known:
                    self._known.add(key)
                    weakref.finalize(storage, self._gone, key, self.take(storage.nbytes()))
        self.outer = max(self.outer, self.now)
        return made

    def known(self, tensors: Sequence[Tensor]) -> None:
        """Tensors that are not counted."""
        self._known |= {one.untyped_storage()._cdata for one in tensors}

    def take(self, size: float) -> Block:
        """A block of so many bytes."""
        self._count += 1
        block = self._count, int(size)
        self.events.append(block)
        self.now += block[1]
        self.peak = max(self.peak, self.now)
        return block

    def drop(self, *blocks: Block) -> None:
        """Frees blocks."""
        for number, size in blocks:
            self.events.append((-number, size))
            self.now -= size

    def _gone(self, key: int, block: Block) -> None:
        self._known.discard(key)
        self.drop(block)

    def call(self, part: str, fakes: Fakes, method: str, *args: Tensor) -> Tensor:
        """The output of a module's method on the meta device, with the record of its memory."""
        key = (method, *((tuple(one.shape), one.dtype) for one in args))
        if key not in fakes.found:
            self.paused = True
            fakes.found[key] = _record(fakes, method, args)
            self.paused = False
        events, peak, like = fakes.found[key]
        self.inner[part] = max(self.inner.get(part, 0), peak)
        blocks: dict[int, Block] = {}
        for number, size in events:
            if number > 0:
                blocks[number] = self.take(size)
            else:
                self.drop(blocks.pop(-number))
        self.drop(*blocks.values())
        return torch.empty_like(like)

    def measured(self, device: torch.device) -> int:
        """Bytes that all blocks take of the allocator.

        On a CPU with glibc they are made once more, untouched, and its malloc's growth is measured, since what it
        cannot fill depends on the order of the blocks.
        """
        if device.type != "cpu" or heap_size() is None:
            return round((1 + _FRAGMENTS) * self.peak)
        plugs = _plugs()
        before = heap_size() or 0
        made: dict[int, Tensor] = {}
        now, most = 0, before
        for number, size in self.events:
            if number > 0:
                made[number] = torch.empty(size, dtype=torch.uint8)
                now += size
                if now > _NEAR * self.peak:
                    most = max(most, heap_size() or 0)
            else:
                made.pop(-number, None)
                now -= size
        made.clear()
        plugs.clear()
        return round(max((1 + _PINS) * (most - before), (1 + _LEAST) * self.peak))


def _plugs() -> list[Tensor]:
    """Blocks in all larger holes of the heap, which the trace has left there and a run does not find."""
    plugs: list[Tensor] = []
    for size in _HOLES:
        held = heap_size() or 0
        while True:
            plug = torch.empty(size, dtype=torch.uint8)
            if (heap_size() or 0) > held:
                break
            plugs.append(plug)
        del plug
    return plugs


def _record(fakes: Fakes, method: str, args: Sequence[Tensor]) -> tuple[list[Block], int, Tensor]:
    """Blocks of one call, their peak, and the output on the meta device."""
    with torch.no_grad(), fakes.mode:
        device = next(iter(tensors_of(fakes.module))).device
        given = [torch.empty(one.shape, dtype=one.dtype, device=device) for one in args]
        own = Trace()
        own.known([*tensors_of(fakes.module), *given])
        with own:
            made = getattr(fakes.module, method)(*given)
    own.paused = True
    events, peak = list(own.events), own.peak
    return events, peak, torch.empty(made.shape, dtype=made.dtype, device=torch.device("meta"))


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def touch(module: nn.Module) -> None:
    """Reads one number of every page, so that weights that are mapped from their file are in memory."""
    for tensor in tensors_of(module):
        tensor.detach().flatten()[:: max(4096 // tensor.element_size(), 1)].sum()


def size_of(tensor: Tensor) -> int:
    """Bytes of a tensor's numbers."""
    return tensor.numel() * tensor.element_size()
