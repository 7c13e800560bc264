"""Plain values of a call's parts, for JSON, and back; tensors by their digests."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_DIGEST = "sha256"


def to_spec(value: object, tensors: dict[str, Tensor] | None = None) -> Any:
    """Plain values for a registered object, and for what it is made of.

    A registered dataclass becomes {"name": ..., **fields}, from which `from_spec` and its registry's `create` make
    it again; a dataclass of numbers and strings inside it becomes a mapping of its fields. Infinity, which JSON
    does not have, becomes "inf". Any other value becomes its repr, which no registry accepts: such a call is
    recorded, but cannot be replayed.

    Args:
        value: The object.
        tensors: Takes the tensors in it, by digest: each becomes {"sha256": ..., "shape": ..., "dtype": ...}. None
            writes their repr.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor) and tensors is not None:
        digest = tensor_sha256(value)
        tensors[digest] = value
        return {_DIGEST: digest, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Mapping):
        return {str(key): to_spec(entry, tensors) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [to_spec(entry, tensors) for entry in value]
    name = getattr(value, "registry_name", None)
    if dataclasses.is_dataclass(value) and name is not None:
        fields = {f.name: to_spec(getattr(value, f.name), tensors) for f in dataclasses.fields(value) if f.init}
        return {"name": name, **fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        if all(map(_is_plain, fields.values())):  # a part of a sampler: a solver's rule, a restart interval
            return to_spec(fields)
    return repr(value)


def _is_plain(value: object) -> bool:
    """Whether the value is a number, a string, None, or a sequence of such."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def from_spec(spec: object, tensors: Mapping[str, Tensor] | None = None) -> Any:
    """What a registry's `create` takes, from the plain values of `to_spec`; any other object as it is.

    Args:
        spec: The values.
        tensors: Tensors by digest; None leaves their records as they are.

    Raises:
        ValueError: A tensor is not among them.
    """
    if isinstance(spec, Mapping):
        if tensors is not None and _DIGEST in spec:
            if spec[_DIGEST] not in tensors:
                raise ValueError(f"the tensor of shape {spec.get('shape')} that it was made with is not given")
            return tensors[spec[_DIGEST]]
        return {key: from_spec(value, tensors) for key, value in spec.items()}
    if isinstance(spec, list):
        return [from_spec(value, tensors) for value in spec]
    return float(spec) if isinstance(spec, str) and spec in ("inf", "-inf", "nan") else spec


def tensor_sha256(values: Tensor) -> str:
    """SHA-256 over the type, the shape and the bytes of a tensor."""
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)}\n".encode())
    flat = values.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def digests(spec: object) -> Iterator[Mapping[str, Any]]:
    """The records of tensors in the plain values of `to_spec`."""
    if isinstance(spec, Mapping):
        if _DIGEST in spec:
            yield spec
        for value in spec.values():
            yield from digests(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from digests(value)
