"""Specs: names with options in one word, such as cfg:scale=4,interval=[0.1,0.9]."""

from __future__ import annotations

import inspect
import os
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

OptionKind = Literal["text", "text or null", "texts", "numbers", "value"]

Names = Annotated[Sequence[str | int], "names"]
"""Names of classes, which may be whole numbers; on a command line each is taken as it is typed."""

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)")
_OPTION = re.compile(r",\s*([A-Za-z_][\w-]*)\s*=")


def parse_spec(
    text: str, more: Sequence[str] = (), kinds: Mapping[str, OptionKind] | None = None
) -> dict[str, Any]:
    """'cfg:scale=4,interval=[0.1,0.9]' -> {'name': 'cfg', 'scale': 4, 'interval': [0.1, 0.9]}.

    Values are read as in YAML. An option that is a text, such as a path, is taken as it is typed, with its commas
    and brackets, up to the next ',OPTION='; quotes around it are removed. One that is a list of numbers may lack
    its brackets: mask:box=2,2,6,6.

    Args:
        text: NAME or NAME:KEY=VALUE,KEY=VALUE.
        more: Further 'key=value'.
        kinds: Of the options that the entry has, see `option_kinds`; None reads every value as in YAML.

    Returns:
        The name and the options.

    Raises:
        ValueError: Text of another form.
    """
    name, colon, options = text.partition(":")
    spec: dict[str, Any] = {"name": name.strip()}
    known = kinds or {}
    if colon and not options.strip():
        raise ValueError(f"no KEY=VALUE follows the colon of {text!r}; did you mean {name.strip()}?")
    for part in (*_bracketed(_split(options, known), known), *more):
        key, equals, value = part.partition("=")
        key = _key(key)
        if not equals or not key:
            advice = "" if kinds is None else _with_key(name.strip(), part, _split(options, known), known)
            raise ValueError(f"options read KEY=VALUE, as in ddim:eta=0.5; got {part!r} in {text!r}{advice}")
        if key in spec:
            raise ValueError(f"{key} is given twice in {' '.join([text, *more])!r}; give it once")
        spec[key] = parse_value(value, known.get(key, "value"))
    return spec


def _with_key(name: str, part: str, parts: Sequence[str], known: Mapping[str, OptionKind]) -> str:
    """The end of the message for a value without a key: the spec with the entry's first option that is free."""
    if not known:
        return f"; {name} takes no options"
    given = {_key(one.partition("=")[0]) for one in parts if "=" in one}
    free = [one for one in known if one not in given]
    if not part or "=" in part or part not in parts or not free:
        return f"; {name} takes {', '.join(known)}"
    if part in known:
        return f"; give {part} a value: {name}:{part}=VALUE"
    whole = ",".join(f"{free[0]}={one}" if one == part else one for one in parts)
    return f"; did you mean {name}:{whole}?"


def option_kinds(entry: Callable[..., Any]) -> dict[str, OptionKind]:
    """What each option of a class or function takes, by its annotation: a text, several, or another value."""
    hints = typing.get_type_hints(entry.__init__ if inspect.isclass(entry) else entry, include_extras=True)
    return {name: _kind(hints.get(name, Any)) for name in inspect.signature(entry).parameters}


def _kind(hint: Any) -> OptionKind:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    members = [one for one in (typing.get_args(hint) if union else (hint,)) if one is not types.NoneType]
    if members and all(one in (str, Path) for one in members):
        return "text or null" if union and types.NoneType in typing.get_args(hint) else "text"
    if len(members) != 1:
        return "value"
    several = typing.get_origin(members[0]) in (list, tuple, Sequence)
    if several and all(one in (int, float, ...) for one in typing.get_args(members[0])):
        return "numbers"
    return "texts" if members[0] == Names or (several and typing.get_args(members[0])[0] is str) else "value"


def parse_value(text: str, kind: OptionKind = "value") -> Any:
    """What a text of the command line stands for.

    Args:
        text: As it was typed.
        kind: 'value' is a number, true, false, null, a list or a word, as YAML reads it; 1e-3, inf and -inf are
            numbers too, and 010 is a word. 'numbers', a list of them, reads as 'value' does. 'text' is the text
            itself, without quotes around it; 'texts' a list whose entries are texts. Nothing at all is None, and
            so is null, but for a 'text'.

    Raises:
        ValueError: Text that YAML cannot read.
    """
    import yaml

    text = text.strip()
    if not text or (text == "null" and kind != "text"):
        return None
    if kind in ("text", "text or null"):
        quoted = len(text) > 1 and text[0] in "\"'" and text[-1] == text[0]
        return text[1:-1] if quoted else text
    try:
        if kind == "texts":
            return yaml.load(text, Loader=yaml.BaseLoader)
        if re.fullmatch(r"[-+]?0\d+", text) or re.fullmatch(r"[-+]?\d[\d_]*(:\d+)+", text):
            return text
        number = "e" in text.lower() or text in ("inf", "-inf")
        return float(text) if number else yaml.safe_load(text)
    except ValueError:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"the value {text!r} cannot be read: {str(error).splitlines()[0]}") from error


def split_outside_brackets(text: str) -> list[str]:
    """The parts between commas that no [], (), {} or quoted value encloses; none where the text is blank."""
    return _split(text, {})


def _split(text: str, kinds: Mapping[str, OptionKind]) -> list[str]:
    """Parts of options between commas; of an option that is a text, all up to the next ',OPTION='."""
    parts = []
    while text.strip():
        end = _end_of_text(text, kinds)
        end = _end_of_value(text) if end is None else end
        parts.append(text[:end].strip())
        if end < len(text) and not text[end + 1 :].strip():
            parts.append("")  # a comma at the end
        text = text[end + 1 :]
    return parts


def _bracketed(parts: Sequence[str], kinds: Mapping[str, OptionKind]) -> list[str]:
    """The brackets of lists of numbers that lack them: 'box=2', '3', 'seed=1' -> 'box=[2,3]', 'seed=1'."""
    joined: list[list[str]] = []
    for part in parts:
        key, _, value = (joined[-1][0] if joined else "").partition("=")
        list_or_misspelt = kinds.get(_key(key), "numbers" if kinds else "value") == "numbers"
        numbers = list_or_misspelt and _NUMBER.fullmatch(value.strip())
        if numbers and _NUMBER.fullmatch(part):
            joined[-1].append(part)
        else:
            joined.append([part])
    return [one[0] if len(one) == 1 else ",".join(one).replace("=", "=[", 1) + "]" for one in joined]


def _end_of_text(text: str, kinds: Mapping[str, OptionKind]) -> int | None:
    """Where the value of an option that is a text ends; None for another option, and for a quoted value."""
    key, _, value = text.partition("=")
    if kinds.get(_key(key), "value") not in ("text", "text or null") or value.lstrip()[:1] in ('"', "'"):
        return None
    start = len(key) + 1
    ends = [(found.start(), _key(found[1]) in kinds) for found in _OPTION.finditer(text, start)]
    ends.append((len(text), True))
    if not ends[0][1]:  # what follows is no option: a part of the text, if there is such a file, or misspelt
        whole = next(end for end, known in ends if known)
        if os.path.exists(os.path.expanduser(text[start:whole].strip())):
            return whole
    return ends[0][0]


def _end_of_value(text: str) -> int:
    """Where the first part ends: at a comma that nothing encloses."""
    depth, quote = 0, ""
    for place, character in enumerate(text):
        if character == quote:
            quote = ""
        elif not quote and character in "\"'" and text[:place].rstrip()[-1:] in tuple("=:,[({"):
            quote = character
        elif not quote:
            depth += (character in "[({") - (character in "])}")
        if character == "," and depth == 0 and not quote:
            return place
    return len(text)


def _key(text: str) -> str:
    return text.strip().replace("-", "_")
