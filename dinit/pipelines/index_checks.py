"""Checks of a pipeline's index and of its backbone's config: their keys, and the types of their values."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dinit.registry import suggest

Finite = Annotated[float, Field(allow_inf_nan=False)]
Entry = Annotated[list[str | None], Field(min_length=2, max_length=2)]


class _Index(BaseModel):
    """The keys of model_index.json, but for those that begin with '_'; files of 0.1.0 lack the last of them."""

    model_config = ConfigDict(extra="forbid")
    backbone: Any = None  # checked with its class
    vae: Entry = [None, None]
    process: dict[str, Any]
    parameterization: dict[str, Any]
    class_names: list[str] | None = None
    t_max: Finite = 1.0
    defaults: dict[str, Any] | None = None
    vae_reference: str | None = None
    pixel_range: Annotated[list[Finite], Field(min_length=2, max_length=2)] = [-1.0, 1.0]
    latent_normalization: dict[str, list[Finite]] | None = None


def check_index(index: Mapping[str, Any], path: Path) -> None:
    """Check an index before a pipeline is made of it.

    Args:
        index: Its content.
        path: Its file, for the message.

    Raises:
        ValueError: A key that no pipeline has, which would be left out of account, or a value of another type.
    """
    given = {key: value for key, value in index.items() if not key.startswith("_")}
    unknown = [key for key in given if key not in _Index.model_fields]
    if unknown:
        raise ValueError(
            f"{path} has the unknown key {unknown[0]!r}{suggest(unknown[0], list(_Index.model_fields))}"
        )
    try:
        _Index.model_validate_json(json.dumps(given), strict=True)
        vae = given.get("vae") or [None, None]
        if vae != [None, None] and (vae[0] != "diffusers" or vae[1] is None):
            raise ValueError(f"{path}: vae: {vae!r} is no autoencoder of diffusers")
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path}: {key}: {first['msg'].lower()}, got {str(first['input'])[:80]}") from error


def kinds_of(hint: Any) -> set[Any]:
    """The types of a union, or the one type of another annotation."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return set(typing.get_args(hint)) if union else {hint}


def check_config(config: Mapping[str, Any], network: type, path: Path) -> None:
    """Check the config of a backbone's folder.

    Args:
        config: Its content.
        network: The class of the backbone.
        path: Its file, for the message.

    Raises:
        ValueError: A key that the class does not have, which would be left out of account, or a number or switch of
            another type.
    """
    fields = {field.name: field for field in dataclasses.fields(network) if field.init}
    known = [*fields, *getattr(network, "renamed_options", {})]
    unknown = [key for key in config if not key.startswith("_") and key not in known]
    if unknown:
        raise ValueError(f"{path} has the unknown key {unknown[0]!r}{suggest(unknown[0], known)}")
    hints = typing.get_type_hints(network)
    for key, value in config.items():
        kinds = kinds_of(hints.get(key))
        if key not in fields or not kinds <= {int, float, bool, str, type(None)}:
            continue
        fits = isinstance(value, (*kinds, int) if float in kinds else tuple(kinds))
        if not fits or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{path}: {key} = {value!r} is of another type than {network.__name__} takes")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path}: {key} = {value} is not finite")
