"""Deprecation: an old name keeps working for a while and warns once, naming its replacement."""

from __future__ import annotations

import sys
import warnings

_warned: set[str] = set()


def warn_once(old: str, new: str, since: str) -> None:
    """Issue a DeprecationWarning for `old`, the first time in this process.

    It is attributed to the first caller outside dinit, so that Python shows it to whoever wrote the call and
    `-W error::DeprecationWarning` stops there.

    Args:
        old: what is deprecated, as a reader finds it in their code: "option 'levels' of sampler 'deis'".
        new: what to write in its place: "'order'".
        since: the version of dinit that deprecated it: "0.1".
    """
    if old in _warned:
        return
    _warned.add(old)
    message = f"{old} is deprecated since dinit {since} and will be removed before 1.0; use {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=_levels_to_caller())


def _levels_to_caller() -> int:
    """`stacklevel` for warnings.warn in `warn_once`: that of the nearest frame outside the package dinit."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "dinit":
        frame, level = frame.f_back, level + 1
    return level
