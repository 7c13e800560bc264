"""The device `meta` in place of a GPU, with numbers: runs that decide by them run as they would.

with meta_with_numbers() as watch:
    sample = sampler.sample(denoiser, to_meta(noise))
assert watch.read_backs == []
assert torch.equal(on_host(sample), sampler.sample(denoiser, noise))
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from meta import COPIES, META, Watch, autocast_on_meta, tensors_in
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
READING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
    aten.equal.default,
    aten.bincount.default,
    aten.is_nonzero.default,
    aten.allclose.default,
    aten.repeat_interleave.Tensor,
}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
ON_HOST = {  # their results
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.allclose.default,
}
TO_NUMBERS = ("item", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__", "__array__")


class Held(Tensor):
    """A tensor on `meta` with the numbers of a tensor on the host."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> Held:
        made = Tensor._make_wrapper_subclass(
            cls,
            numbers.size(),
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=META,
        )
        made.numbers = numbers
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(Watch(), func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"Held({self.numbers})"


def run(watch: Watch, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operation: on the host, if it takes or makes tensors of the device, with what it would do there seen."""
    held = any(isinstance(one, Held) for one in tree_leaves((args, kwargs)))
    device = kwargs.get("device")
    makes = device is not None and torch.device(device).type == "meta"
    if not held and not makes:
        return func(*args, **kwargs)
    name, to_host = func._schema.name, (device is not None and not makes) or _into_host(func, args)
    if name not in COPIES:
        watch.check_mixed(name, (args, kwargs))
    elif to_host:
        watch.read_backs.append(name)
    else:
        watch.check_copy(name, args, kwargs)
    if func in READING or (func in INDEXING and _masks(args[1])):
        watch.read_backs.append(name)
    plain_kwargs = _plain(kwargs)
    if makes:
        plain_kwargs["device"] = torch.device("cpu")
    plain = func(*_plain(args), **plain_kwargs)
    if to_host or func in ON_HOST:
        return plain
    return return_and_correct_aliasing(func, args, kwargs, tree_map_only(Tensor, Held, plain))


def _plain(value: Any) -> Any:
    """The value with the numbers of its tensors, in nested tuples, lists and mappings."""
    if isinstance(value, Held):
        return value.numbers
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return type(value)(map(_plain, value)) if isinstance(value, tuple | list) else value


def _into_host(func: Any, args: Any) -> bool:
    return func is aten.copy_.default and not isinstance(args[0], Held)


def _masks(indices: Any) -> bool:
    return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in indices)


class _Dispatch(TorchDispatchMode):
    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if Held not in types and "device" not in kwargs:  # work of the host: most of what is called
            return func(*args, **kwargs)
        return run(self.watch, func, args, kwargs)


class _Calls(TorchFunctionMode):
    """What never comes to dispatch: tensors made of Python numbers, and tensors made into them."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            if device.type == "meta":
                self.watch.wait(f"{func.__name__} of numbers")
            return func(*args, **kwargs).to(device, non_blocking=True)
        name = getattr(func, "__name__", "")
        if args and isinstance(args[0], Held) and name in TO_NUMBERS:
            self.watch.read_backs.append(name)
            return func(args[0].numbers, *args[1:], **kwargs)
        return func(*args, **kwargs)


def to_meta(value: Tensor) -> Tensor:
    """The tensor on the device, without an upload that is counted."""
    return Held(value.detach())


def on_host(value: Tensor) -> Tensor:
    """The numbers of a tensor of the device, without a read-back that is counted."""
    assert isinstance(value, Held), "a tensor of the device has become one of the host"
    return value.numbers


@contextlib.contextmanager
def meta_with_numbers() -> Iterator[Watch]:
    """While it is open, `meta` stands in for a GPU and computes: see `meta_device` for what that refuses.

    Read-backs are in its lists and give their numbers; so are uploads that wait for the device.
    """
    watch = Watch()
    with autocast_on_meta(), _Calls(watch), _Dispatch(watch):
        yield watch


@dataclass(frozen=True)
class Place:
    """Where a run takes place.

    Attributes:
        device: Of its tensors.
        watch: What is seen of the device; of the host, nothing.
    """

    device: torch.device
    watch: Watch

    def put(self, value: Tensor) -> Tensor:
        """A tensor of the host there."""
        return to_meta(value) if self.device.type == "meta" else value


def on_both(run: Callable[[Place], Any]) -> Watch:
    """Run on the host and on the device, with equal tensors (in nested tuples, lists or a mapping) as results."""
    expected = tensors_in(run(Place(torch.device("cpu"), Watch())))
    with meta_with_numbers() as watch:
        found = tensors_in(run(Place(META, watch)))
    assert expected
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(on_host(one), other, rtol=0, atol=0, equal_nan=True)
    return watch
