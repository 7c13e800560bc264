"""The device `meta` in place of a GPU: PyTorch's gaps about it filled, mixed devices refused, read-backs counted.

with meta_device() as watch:
    sample = sampler.sample(denoiser, torch.randn(2, 3, 8, 8, device=META))
assert watch.read_backs == []
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")


class ReadBackError(RuntimeError):
    """A number of a tensor on the device was wanted on the host."""


class WaitError(RuntimeError):
    """An upload that makes the host wait for the device."""


class MixedDevicesError(RuntimeError):
    """An operation on tensors of the device and on a tensor of one dimension or more that was left on the host."""


@dataclass
class Watch:
    """What was seen of one device.

    Attributes:
        device: Its type.
        read_backs: Names of the calls that read a tensor back, in their order.
        waits: Uploads for which a GPU is waited for: copies that are not `non_blocking`, tensors made there of
            Python numbers, and operations that copy a scalar from the host first, as `where` does.
        refuse_waits: Whether they are errors too.
        operations: How many operations had a tensor of the device.
    """

    device: str = "meta"
    read_backs: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)
    refuse_waits: bool = False
    operations: int = 0

    def on(self, value: object) -> bool:
        """Whether it is a tensor on the device."""
        return isinstance(value, Tensor) and value.device.type == self.device

    def wait(self, what: str) -> None:
        """Record an upload that waits; WaitError where those are refused."""
        self.waits.append(what)
        if self.refuse_waits:
            raise WaitError(f"{what} waits for the device")

    def check_copy(self, name: str, args: Any, kwargs: Any) -> None:
        """Record a copy from the host that waits."""
        if name == "aten::copy_":
            source, to, quick = args[1], args[0].device, any(args[2:]) or kwargs.get("non_blocking")
        else:
            source, to, quick = args[0], kwargs.get("device") or args[0].device, kwargs.get("non_blocking")
        if torch.device(to).type == self.device and not self.on(source) and not quick:
            self.wait(f"{name} of shape {tuple(source.shape)}")

    def check_mixed(self, name: str, arguments: object) -> None:
        """MixedDevicesError unless the tensors are all on the device, or scalars of a schedule.

        PyTorch has such a check, but not in every operation: on `meta` matrix products, convolutions and writes
        in place take what a GPU would refuse.
        """
        tensors = tensors_in(arguments)
        left = [tuple(one.shape) for one in tensors if one.ndim and not self.on(one)]
        here = any(self.on(one) for one in tensors)
        self.operations += here
        if left and here:
            raise MixedDevicesError(f"{name} takes tensors of the device and, on the host, of the shapes {left}")
        if here and not all(self.on(one) for one in tensors) and name.rstrip("_") not in TAKE_SCALARS:
            self.wait(f"{name} of a scalar on the host")


def tensors_in(values: object) -> list[Tensor]:
    """The tensors in nested tuples, lists and mappings."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = tuple(values.values())
    return [one for value in values for one in tensors_in(value)] if isinstance(values, tuple | list) else []


COPIES = ("aten::_to_copy", "aten::copy_", "aten::_copy_from")  # from one device to another is their purpose
# Kernels of a GPU take a 0-dimensional tensor of the host as a number in these; others copy it first, or refuse it.
TAKE_SCALARS = {f"aten::{name}" for name in (
    "add", "sub", "rsub", "mul", "div", "pow", "eq", "ne", "lt", "le", "gt", "ge", "maximum", "minimum",
    "remainder", "fill", "masked_fill",
)}  # fmt: skip
OF_NUMBERS = ("tensor", "as_tensor", "asarray", "new_tensor")
READING = ("item", "tolist", "numpy", "cpu", "nonzero", "argwhere", "masked_select", "unique", "equal", "allclose",
           "is_nonzero", "__bool__", "__float__", "__int__", "__index__", "__complex__", "__array__", "bincount",
           "unique_consecutive")  # fmt: skip


class _Names(TorchFunctionMode):
    """Records and refuses the calls that read a tensor of the device back."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # as torch declares it
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if args and self._reads(name, args, kwargs) and any(map(self.watch.on, tensors_in((args, kwargs)))):
            self.watch.read_backs.append(name)
            raise ReadBackError(f"{name} reads a tensor of the device back")
        made = func(*args, **kwargs)
        if name in OF_NUMBERS and self.watch.on(made) and not isinstance(args[-1], Tensor):
            self.watch.wait(f"{name} of numbers, of shape {tuple(made.shape)},")
        return made

    def _reads(self, name: str, args: Any, kwargs: Any) -> bool:
        if name in READING:
            return True
        if name == "to":
            wanted = [*args[1:2], kwargs.get("device"), kwargs.get("other")]
            return any(_host(one) for one in wanted)
        if name == "copy_":
            return not self.watch.on(args[0])
        if name == "where":
            return len(args) + len(kwargs) == 1
        if name == "repeat_interleave":
            return any(isinstance(one, Tensor) for one in [*args[1:2], kwargs.get("repeats")])
        if name == "__setitem__" and not (isinstance(args[2], Tensor) and args[2].ndim):
            return False  # a mask is filled with a number without counting its rows
        if name in ("__getitem__", "__setitem__"):
            return any(isinstance(one, Tensor) and one.dtype == torch.bool for one in tree_leaves(args[1]))
        return False


def _host(value: object) -> bool:
    """Whether `to(value)` goes to the CPU."""
    if isinstance(value, Tensor):
        return value.device.type == "cpu"
    return isinstance(value, str | torch.device) and torch.device(value).type == "cpu"


class _Mixed(TorchDispatchMode):
    """Refuses operations on tensors of both devices, in the backward pass too."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name in COPIES:
            self.watch.check_copy(name, args, kwargs or {})
        else:
            self.watch.check_mixed(name, (args, kwargs))
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def autocast_on_meta() -> Iterator[None]:
    """`torch.autocast("meta")` does nothing, `torch.is_autocast_enabled("meta")` is False; PyTorch has neither."""
    autocast, enabled = torch.autocast, torch.is_autocast_enabled

    def autocast_of(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device_type == "meta" else autocast(device_type, *args, **kwargs)

    def is_enabled(device_type: str | None = None) -> bool:
        return False if device_type == "meta" else enabled(*([] if device_type is None else [device_type]))

    with (
        mock.patch.object(torch, "autocast", autocast_of),
        mock.patch.object(torch.amp, "autocast", autocast_of),
        mock.patch.object(torch, "is_autocast_enabled", is_enabled),
    ):
        yield


@contextlib.contextmanager
def meta_device(refuse_waits: bool = False) -> Iterator[Watch]:
    """While it is open, `meta` stands in for a GPU.

    A tensor left on the host is a MixedDevicesError and a read-back a ReadBackError, also in its list.
    """
    watch = Watch(refuse_waits=refuse_waits)
    with autocast_on_meta(), _Names(watch), _Mixed(watch):
        yield watch
