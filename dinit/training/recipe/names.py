"""Present names of renamed options: old and new recipes of one run are equal."""

from __future__ import annotations

from typing import Any

from dinit.registry import Registry
from dinit.samplers.base import SAMPLERS
from dinit.samplers.guidance.base import GUIDANCES
from dinit.training.losses.times import TIME_SAMPLERS

# Keys of a recipe, and the registry of their entries: those that have renamed options.
_ENTRIES: tuple[tuple[tuple[str, ...], Registry[Any]], ...] = (
    (("time",), TIME_SAMPLERS),
    (("sampling", "sampler"), SAMPLERS),
    (("sampling", "guidance"), GUIDANCES),
)


def use_present_names(data: dict[str, Any], warn: bool = True) -> None:
    """Rename old options in a recipe's plain values, in place.

    warn: a DeprecationWarning for each; False for files that dinit wrote, which their user cannot change.
    """
    for path, registry in _ENTRIES:
        section: Any = data
        for key in path[:-1]:
            section = section.get(key) if isinstance(section, dict) else None
        if not isinstance(section, dict) or path[-1] not in section:
            continue
        value = section[path[-1]]
        one_or_more = [_renamed(one, registry, warn) for one in (value if isinstance(value, list) else [value])]
        section[path[-1]] = one_or_more if isinstance(value, list) else one_or_more[0]


def _renamed(value: Any, registry: Registry[Any], warn: bool) -> Any:
    """The entry's mapping with present names; unchanged where it is something else, which the checks report."""
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in registry:
        return value
    options = {option: given for option, given in value.items() if option != "name"}
    new_names = getattr(registry[name], "renamed_options", {})
    if any(new_names.get(option) in options for option in options):  # given twice, which the checks report
        return value
    if warn:
        return {"name": name, **registry.current_options(name, options)}
    return {"name": name, **{new_names.get(option, option): given for option, given in options.items()}}
