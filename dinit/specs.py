"""Specs: names with options in one word, such as cfg:scale=4,interval=[0.1,0.9]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def parse_spec(text: str, more: Sequence[str] = ()) -> dict[str, Any]:
    """'cfg:scale=4,interval=[0.1,0.9]' -> {'name': 'cfg', 'scale': 4, 'interval': [0.1, 0.9]}.

    Values read as in YAML. more: further 'key=value'. ValueError for text of another form.
    """
    name, _, options = text.partition(":")
    spec: dict[str, Any] = {"name": name.strip()}
    for part in (*split_outside_brackets(options), *more):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"options read KEY=VALUE, as in ddim:eta=0.5; got {part!r} in {text!r}")
        spec[key.strip().replace("-", "_")] = parse_value(value)
    return spec


def parse_value(text: str) -> Any:
    """A number, true, false, null, a list or a word, as YAML reads it; 1e-3, inf and -inf are numbers too."""
    import yaml

    try:
        number = "e" in text.lower() or text.strip() in ("inf", "-inf")
        return float(text) if number else yaml.safe_load(text)
    except ValueError:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the value {text!r} cannot be read: {str(error).splitlines()[0]}") from error


def split_outside_brackets(text: str) -> list[str]:
    """The parts between commas that no [], (), {} or quoted value encloses; none where the text is blank."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if character == quote:
            quote = ""
        elif not quote and character in "\"'" and parts[-1].rstrip()[-1:] in tuple("=:,[({"):
            quote = character
        elif not quote:
            depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts] if text.strip() else []
