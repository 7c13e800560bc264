"""Defaults of everything that is registered, as recorded: another default is another method for whoever gives none.

A default that was changed on purpose is recorded by `python tests/test_defaults.py`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

RECORDED = Path(__file__).parent / "fixtures" / "defaults.json"


def registries() -> dict[str, Any]:
    from dinit.cli.names import PLACES
    from dinit.compat import ensure_torchvision

    ensure_torchvision()
    return {
        kind: getattr(import_module(module), name) for kind, (module, name) in PLACES.items() if kind != "layouts"
    }


def plain(value: Any) -> Any:
    """A default as JSON holds it; objects by their class's name."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value if value not in (float("inf"), -float("inf")) else str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    return getattr(value, "__name__", None) or repr(value).split("(")[0].split(" object")[0]


def defaults(entry: Any) -> dict[str, Any]:
    found = inspect.signature(entry).parameters.values()
    return {one.name: plain(one.default) for one in found if one.default is not inspect.Parameter.empty}


def entries() -> Iterator[tuple[str, dict[str, Any]]]:
    for kind, registry in registries().items():
        own = (name for name in registry if registry[name].__module__.startswith("dinit."))  # other tests add more
        for name in own:
            yield f"{kind} {name}", defaults(registry[name])


@pytest.mark.parametrize("kind", ["backbones", "samplers", "metrics"])
def test_the_record_has_every_kind(kind: str) -> None:
    assert any(name.startswith(f"{kind} ") for name in json.loads(RECORDED.read_text(encoding="utf-8")))


def test_defaults_are_the_recorded_ones() -> None:
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(dict(entries())))
    assert recorded.keys() == now.keys()
    changed = {name: (recorded[name], now[name]) for name in now if recorded[name] != now[name]}
    assert not changed, f"record anew what was changed on purpose: python {__file__}"


if __name__ == "__main__":
    RECORDED.write_text(json.dumps(dict(entries()), indent=1, sort_keys=True) + "\n", encoding="utf-8")
