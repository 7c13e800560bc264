"""Options of registered samplers and guidances as fields of a form: type, default, range and choices."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dinit.app.spec_text import spec_text, yaml_text
from dinit.pipelines.call import to_spec
from dinit.registry import Registry
from dinit.samplers.base import SAMPLERS, Sampler
from dinit.samplers.guidance.schedule import SCHEDULES, ScaleSchedule
from dinit.specs import OptionKind, option_kinds, parse_value

Kind = Literal["slider", "number", "choice", "switch", "text"]
_REGISTRIES: tuple[tuple[type, Registry[Any]], ...] = ((ScaleSchedule, SCHEDULES), (Sampler, SAMPLERS))
_USUAL_SCALE = 10.0  # end of the slider of a scale, which has none of its own
_ENTRY = re.compile(r"^ {4}(\w+):(.*(?:\n {8}.*)*)", re.MULTILINE)


@dataclass(frozen=True)
class Option:
    """One field of a form.

    Attributes:
        name: keyword of the class.
        kind: the widget.
        default: of the class. A number's None or infinity is an empty field.
        low: least value, where the docstring has one.
        high: largest value, where the docstring has one.
        whole: whether the number is an integer.
        choices: of a 'choice', as texts.
        help: the docstring's entry.
    """

    name: str
    kind: Kind
    default: Any
    low: float | None = None
    high: float | None = None
    whole: bool = False
    choices: tuple[str, ...] = ()
    help: str = ""

    @property
    def empty(self) -> bool:
        """Whether the default is shown as an empty field."""
        return self.default is None or (isinstance(self.default, float) and math.isinf(self.default))


def options_of(entry: type) -> tuple[Option, ...]:
    """The options of a registered dataclass that a form can hold; not networks and functions.

    Args:
        entry: class of a sampler, a grid or a guidance.
    """
    hints, texts, kinds = typing.get_type_hints(entry), _entries(entry), option_kinds(entry)
    fields = [field for field in dataclasses.fields(entry) if field.init]
    made = (_option(field, hints[field.name], texts.get(field.name, ""), kinds[field.name]) for field in fields)
    return tuple(one for one in made if one is not None)


def _entries(entry: type) -> dict[str, str]:
    """Option to its text, of the docstrings of the class and its bases."""
    found: dict[str, str] = {}
    for one in inspect.getmro(entry):
        for name, text in _ENTRY.findall(inspect.cleandoc(vars(one).get("__doc__") or "")):
            found.setdefault(name, " ".join(text.split()))
    return found


def _option(field: dataclasses.Field[Any], hint: Any, text: str, kind: OptionKind) -> Option | None:
    """The field's form; None for one that takes a network or a function."""
    if field.default is dataclasses.MISSING:
        return None
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    members = [one for one in (typing.get_args(hint) if union else (hint,)) if one is not types.NoneType]
    if typing.get_origin(members[0]) is Literal:
        choices = tuple(map(str, typing.get_args(members[0])))
        return Option(field.name, "choice", field.default, choices=choices, help=text)
    if members == [bool]:
        return Option(field.name, "switch", field.default, help=text)
    if members in ([float], [int]):
        low, high = _range(text, field.name)
        whole = members == [int]
        slider = low is not None and high is not None and field.default is not None
        return Option(field.name, "slider" if slider else "number", field.default, low, high, whole, help=text)
    for kind_of, registry in _REGISTRIES:
        if kind_of in members:
            return Option(field.name, "choice", field.default, choices=tuple(registry), help=text)
    if kind == "value" and not any(_is_plain(one) for one in members):
        return None
    return Option(field.name, "text", field.default, help=text)


def _is_plain(hint: Any) -> bool:
    """Whether a text can hold it: numbers, words, and sequences and mappings of them."""
    origin = typing.get_origin(hint) or hint
    return origin in (str, int, float) or (inspect.isclass(origin) and issubclass(origin, (Mapping, Sequence)))


def _range(text: str, name: str) -> tuple[float | None, float | None]:
    """Ends of the range that a docstring's entry has, as in 'in [0, 1]', '1 to 4', 'at least 0'."""
    if found := re.search(r"\b[Ii]n ([(\[])(-?[\d.]+), (-?[\d.]+)[)\]]", text):
        low, high = float(found[2]), float(found[3])
        return low + (0.01 if found[1] == "(" else 0.0), high
    if found := re.search(r"(?<![\d.])(\d+)(?: \(\w+\))? to (\d+)(?![\d.]*\d)", text):
        return float(found[1]), float(found[2])
    low = None
    if found := re.search(r"\b[Aa]t least (\d+)", text):
        low = float(found[1])
    elif re.search(r"\b[Pp]ositive\b", text):
        low = 0.0
    return low, _USUAL_SCALE if name == "scale" and low is not None else None


def form_values(part: Any) -> dict[str, Any]:
    """The values of a form that stands for an object: None is an empty field.

    Args:
        part: a sampler, a grid or a guidance.
    """
    return {one.name: _shown(one, getattr(part, one.name)) for one in options_of(type(part))}


def _shown(option: Option, value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isinf(value)):
        return None
    if option.kind == "choice":
        return spec_text(value) if hasattr(value, "registry_name") else str(value)
    if option.kind == "text":
        return value if isinstance(value, str) else yaml_text(to_spec(value)) if value else ""
    return value


def text_of_form(registry: Registry[Any], name: str, values: Mapping[str, Any]) -> str:
    """The text form of what a form holds, as "cfg:scale=4.0".

    Args:
        registry: of samplers, grids or guidances.
        name: registered name, or a text with options, which is returned as it is.
        values: of the fields. Empty ones, and those of other entries, stand for the default.

    Raises:
        ValueError: a value that the class refuses.
    """
    if ":" in name:
        return name
    entry = registry[name]
    kinds = option_kinds(entry)
    given = {}
    for option in options_of(entry):
        value = values.get(option.name)
        if value is None or value == "" or value == _shown(option, option.default):
            continue
        given[option.name] = _value(option, value, kinds[option.name])
    return spec_text(registry.create({"name": name, **given}))


def _value(option: Option, value: Any, kind: OptionKind) -> Any:
    if option.kind in ("slider", "number"):
        return _whole(option.name, value) if option.whole else float(value)
    if option.kind == "choice":
        if isinstance(option.default, int):
            return int(value)
        return next((one.parse(value) for _, one in _REGISTRIES if ":" in value and _is_in(one, value)), value)
    return parse_value(value, kind) if option.kind == "text" else value


def _is_in(registry: Registry[Any], text: str) -> bool:
    return text.split(":")[0] in registry


def _whole(name: str, value: float) -> int:
    if int(value) != value:
        raise ValueError(f"{name} must be a whole number, got {value}")
    return int(value)
