"""Advice of messages in the words of both entry points: options of `dinit convert`, and keywords of `convert`."""

from __future__ import annotations

import json
import re

_KEYWORDS = ("layout", "weights", "process", "parameterization", "vae")


def also_in_python(text: str) -> str:
    """A message that names options of the command (`--option num_heads=6`), with the keywords of Python too.

    Args:
        text: The message; one that names no option, or names its keyword already, is returned as it is.
    """
    dicts: list[dict[str, str]] = []
    for name, value in re.findall(r"--option (\w+)=(\[[^\]]*\]|[^\s,;)]+)", text):
        if not dicts or name in dicts[-1]:  # another choice
            dicts.append({})
        dicts[-1][name] = _python(value)
    given = [" or ".join(f"options={{{', '.join(f'{k!r}: {v}' for k, v in one.items())}}}" for one in dicts)]
    for name in _KEYWORDS:
        values = re.findall(rf"--{name}(?: ([a-z][\w.-]*-?[\w.]+)(?=$|[\s,;)]))?", text)
        if values and f"{name}=" not in text:
            layouts = " or ".join(f"{name}={value!r}" for value in values if value and name == "layout")
            given.append(layouts or f"{name}=")
    listed = ", ".join(one for one in given if one)
    return text if not listed or "options=" in text else f"{text} (in Python: {listed})"


def _python(value: str) -> str:
    """A value as JSON writes it, as Python does; a name of a value as it is."""
    try:
        return repr(json.loads(value))
    except ValueError:
        return value
