"""Edits by chance, with a fixed seed, of trees as JSON and YAML have them, and of the bytes of files."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 1000.0, 1e30, float("nan"), float("inf"), "", "1", "1000", "8", "none", 
    "linear", "ß/..", [], [1, 2], [[1]], {}, {"name": "x"}, {"a": {"b": 1}},
)  # fmt: skip


def edited(seed: int, tree: Any, count: int = 60) -> Iterator[tuple[str, Any]]:
    """`count` edited copies of a tree of dicts, lists and plain values: (what was done, the copy).

    Values of another type or size, keys renamed, missing, added, and parts nested one deeper or lifted out.
    """
    chance = random.Random(seed)
    places = [place for place in _places(tree, ()) if place]
    for _ in range(count):
        made, place = copy.deepcopy(tree), chance.choice(places)
        yield _edit(chance, made, place), made


def _places(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield from _places(value, (*path, key))


def _edit(chance: random.Random, tree: Any, place: tuple[Any, ...]) -> str:
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    key, name = place[-1], "/".join(map(str, place))
    kind = chance.choice(("value", "value", "text", "missing", "renamed", "added", "nested", "number"))
    old = parent[key]
    if kind == "missing":
        del parent[key]
        return f"without {name}"
    if kind in ("renamed", "added") and isinstance(parent, dict):
        other = chance.choice((f"{key}s", str(key)[:-1] or "x", str(key).upper(), f"{key}_2"))
        parent[other] = parent.pop(key) if kind == "renamed" else chance.choice(_VALUES)
        return f"{name} {kind} {other}"
    if kind == "nested":
        parent[key] = chance.choice(([old], {"value": old}))
    elif kind == "number" and isinstance(old, int | float) and not isinstance(old, bool):
        parent[key] = chance.choice((-old, old * 1000, old + 0.5, float(old), str(old), 0))
    elif kind == "text" and isinstance(old, str):
        parent[key] = chance.choice((old.upper(), old + "x", old[:-1], old.replace("_", "-"), f" {old}"))
    else:
        parent[key] = chance.choice(_VALUES)
    return f"{name} = {parent[key]!r} in place of {old!r}"


def damaged(seed: int, content: bytes, count: int = 60) -> Iterator[tuple[str, bytes]]:
    """`count` damaged copies of a file's bytes: cut off, overwritten, with a stretch removed or repeated."""
    chance = random.Random(seed)
    for _ in range(count):
        at, length = chance.randrange(len(content)), chance.randrange(1, max(2, len(content) // 8))
        kind = chance.choice(("cut", "overwritten", "removed", "repeated", "flipped"))
        stretch = content[at : at + length]
        middle = {
            "overwritten": bytes(chance.randrange(256) for _ in stretch),
            "removed": b"",
            "repeated": stretch + stretch,
            "flipped": bytes([stretch[0] ^ (1 << chance.randrange(8))]) + stretch[1:],
        }
        made = content[:at] if kind == "cut" else content[:at] + middle[kind] + content[at + length :]
        yield f"{kind} at {at}, {length} bytes", made
