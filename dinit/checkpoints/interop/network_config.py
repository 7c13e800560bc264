"""Config of a diffusers network, checked by the annotations of its class."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError

from dinit.checkpoints.interop.scheduler_config import FAILURES, shortened
from dinit.registry import suggest


def checked_network(class_: Any, config: Mapping[str, Any], where: str, older: Any = None) -> dict[str, Any]:
    """The settings of a network's config.json, each of its own type: "8" and 8.0 become 8.

    Args:
        class_: A model class of diffusers.
        config: The file's content.
        where: The file, for errors.
        older: The class by whose name the file was written, where another has replaced it.

    Returns:
        The settings that the class has.

    Raises:
        ValueError: A key that the class does not have, or a value of a wrong type.
    """
    accepted, neutral = settings(class_), settings(older) if older else {}
    made: dict[str, Any] = {}
    for key, value in config.items():
        if key in accepted:
            made[key] = _value(class_, key, value, where)
        elif not key.startswith("_") and not (key in neutral and value in (None, False, neutral[key])):
            raise ValueError(
                f"{where}: {key} = {shortened(value)} is no setting of {class_.__name__}"
                f"{suggest(key, list(accepted))}; take it out if it means nothing"
            )
    return made


def shapes_of(class_: Any, config: Mapping[str, Any], where: str) -> dict[str, list[int]]:
    """Names and shapes of the tensors of a network.

    Args:
        class_: A model class of diffusers.
        config: From `checked_network`.
        where: The file, for errors.

    Returns:
        {name: shape}.

    Raises:
        ValueError: The class cannot be made with this config.
    """
    try:
        return _shapes(class_, config)
    except FAILURES as error:
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        at_fault = [key for key in config if _works(class_, {k: v for k, v in config.items() if k != key})]
        set_ = {key: value for key, value in config.items() if value != settings(class_)[key]}
        named = at_fault or [key for key, value in set_.items() if _occurs(key, value, reason)]
        listed = " or ".join(f"{key} = {shortened(config[key])}" for key in named[:3])
        raise ValueError(
            f"{where} makes no {class_.__name__}{' with ' if listed else ''}{listed}: {reason}"
        ) from error


@cache
def settings(class_: Any) -> dict[str, Any]:
    """The keys of a class's config, each with its default."""
    parameters = inspect.signature(class_.__init__).parameters
    return {key: one.default for key, one in parameters.items() if key != "self"}


def _shapes(class_: Any, config: Mapping[str, Any]) -> dict[str, list[int]]:
    with torch.device("meta"):  # shapes without memory
        model = class_.from_config(dict(config))
    return {name: list(tensor.shape) for name, tensor in model.state_dict().items()}


def _works(class_: Any, config: Mapping[str, Any]) -> bool:
    try:
        _shapes(class_, config)
    except FAILURES:
        return False
    return True


def _occurs(key: str, value: Any, reason: str) -> bool:
    """Whether a text in the value, or the key or an end of it, stands in the reason."""
    texts = value if isinstance(value, list | tuple) else [value]
    words = [word for word in re.findall(r"\w+", reason) if "_" in word]
    return any(isinstance(text, str) and len(text) > 2 and text in reason for text in texts) or any(
        key.endswith(word) for word in words
    )


def _value(class_: Any, key: str, value: Any, where: str) -> Any:
    try:
        if isinstance(value, bool) and "bool" not in str(_annotation(class_, key)):
            raise ValueError(f"{where}: {key} = {value} is not usable: true and false are no numbers")
        return _adapter(class_, key).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
        raise ValueError(f"{where}: {key}{place} = {shortened(value)} is not usable: {first['msg']}") from error


@cache
def _annotation(class_: Any, key: str) -> Any:
    return typing.get_type_hints(class_.__init__)[key]


@cache
def _adapter(class_: Any, key: str) -> TypeAdapter[Any]:
    kind = _annotation(class_, key)
    if typing.get_origin(kind) is tuple and len(typing.get_args(kind)) == 1:  # tuple[str] is of any length there
        kind = tuple[typing.get_args(kind)[0], ...]  # type: ignore[misc]
    return TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
