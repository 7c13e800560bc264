"""Text forms of samplers, grids and guidances, as on the command line: cfg:scale=4.0,low=-2.0."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dinit.pipelines.call import to_spec
from dinit.specs import OptionKind, option_kinds

_NO_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}  # YAML 1.1 reads other values of them


def spec_of(part: Any) -> dict[str, Any]:
    """A registered dataclass as {"name": ..., **options}, with its scale and what differs from the defaults.

    Args:
        part: a sampler, a grid or a guidance.
    """
    options = {
        field.name: getattr(part, field.name)
        for field in dataclasses.fields(part)
        if field.init and (field.name == "scale" or not _is_default(getattr(part, field.name), field))
    }
    return {"name": part.registry_name, **options}


def _is_default(value: Any, field: dataclasses.Field[Any]) -> bool:
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return type(value) is type(default) and value == default


def spec_text(part: Any) -> str:
    """The text from which `Registry.create` makes an equal object.

    Args:
        part: a sampler, a grid or a guidance.
    """
    name, *options = spec_of(part).items()
    kinds = option_kinds(type(part))
    written = ",".join(f"{key}={_option_text(to_spec(value), kinds.get(key, 'value'))}" for key, value in options)
    return f"{name[1]}:{written}" if written else str(name[1])


def _option_text(value: Any, kind: OptionKind) -> str:
    if kind not in ("text", "text or null") or not isinstance(value, str):
        return yaml_text(value, inside=False)
    return f'"{value}"' if not value or "," in value or value != value.strip() or value[0] in "\"'" else value


def yaml_text(value: Any, inside: bool = False) -> str:
    """A value in YAML's flow style, as `dinit.specs.parse_value` reads it.

    Args:
        value: number, word, None, or sequences and mappings of them.
        inside: in brackets, where `parse_value` has no rules of its own for numbers.
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) or value in ("inf", "-inf"):
        return _number(float(value), inside)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {yaml_text(entry, True)}" for key, entry in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(yaml_text(entry, True) for entry in value) + "]"
    word = str(value)
    if not inside or (
        isinstance(value, int) or (re.fullmatch(r"[A-Za-z][\w./-]*", word) and word not in _NO_WORDS)
    ):
        return word
    return json.dumps(word)


def _number(value: float, inside: bool) -> str:
    if not math.isfinite(value):
        return ("-" if value < 0 else "") + (".inf" if inside else "inf")
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text  # YAML 1.1 reads 1e-5 as a word
