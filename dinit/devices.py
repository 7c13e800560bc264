"""Devices by name: cpu, cuda, cuda:1, mps, or auto."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def upload(values: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on the device, by a copy that the host does not wait for.

    Args:
        values: On the host, or on the device already.
        device: The device.
        dtype: Of the result; None is that of `values`.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()  # from other memory the driver may wait for the work before
    return values.to(device=device, dtype=dtype or values.dtype, non_blocking=True)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which operations on the device keep their dtypes; on meta, which has no autocast, nothing."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for the device; never on meta, which has none."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def choose_device(name: str) -> str:
    """The device of a name, checked.

    Args:
        name: cpu, cuda, cuda:1, mps or another of torch's; auto is a CUDA GPU where there is one, else the CPU.

    Returns:
        The name, with auto filled in.

    Raises:
        ValueError: No such device, or torch cannot use it here; the error lists those of this machine.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # an unknown word; a torch without CUDA
        reason = _reason(name, error)
        raise ValueError(
            f"device {name!r} cannot be used: {reason}; this machine has {available_devices()}"
        ) from error
    return name


def available_devices() -> str:
    """The devices of this machine, as a list in words."""
    gpus = [f"cuda:{k} ({torch.cuda.get_device_name(k)})" for k in range(torch.cuda.device_count())]
    mps = ["mps"] if torch.backends.mps.is_available() else []
    return ", ".join(["cpu", *gpus, *mps])


def _reason(name: str, error: Exception) -> str:
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps"):
        return "its name is none of auto, cpu, cuda, cuda:1 and mps"
    if kind == "cuda" and not torch.cuda.is_available():
        return "torch here is built without CUDA" if torch.version.cuda is None else "there is no CUDA GPU"
    if kind == "mps" and not torch.backends.mps.is_available():
        return "there is no GPU of Apple"
    if kind == "cuda" and number.isdigit():
        return "there is no GPU of that number"
    return str(error).splitlines()[0]
