"""Advice for names of samplers that other programs have and that are two things here, or none."""

from __future__ import annotations

import re
from typing import Any

from dinit.registry import Registry, UnknownName

# What k-diffusion, ComfyUI and AUTOMATIC1111 append to a sampler's name for the spacing of its noise levels.
_GRIDS = {
    "karras": "karras",
    "polyexponential": "polyexponential",
    "exponential": "exponential",
    "ays": "align-your-steps",
    "align-your-steps": "align-your-steps",
}


def advise(samplers: Registry[Any], name: str) -> str | None:
    """What to write in place of a name that no sampler has; None where there is nothing better than the nearest.

    'dpmpp_2m_karras' names a sampler and a grid, 'sample_euler' a function of k-diffusion, 'euler_cfg_pp' a sampler
    and a guidance; consistency samplers need networks that were distilled for them.
    """
    if _is_number(name):
        return f"a number of steps is steps={name.strip()}, or --steps {name.strip()}"
    words = re.sub(r"[\s_]+", "-", name.strip().lower())
    if words in ("lcm", "tcd"):
        return "it samples networks that were distilled for it; any network takes a solver such as 'dpmpp-2m'"
    for suffix, grid in _GRIDS.items():
        sampler = _stem(samplers, words, words.removesuffix(f"-{suffix}"))
        if sampler is not None:
            return f"write sampler={sampler!r}, grid={grid!r}"
    sampler = _stem(samplers, words, words.removesuffix("-cfg-pp").removesuffix("-cfg++"))
    if sampler is not None:
        return f"write sampler={sampler!r}, guidance='cfg++'"
    sampler = _stem(samplers, words, words.removeprefix("sample-").removesuffix("-gpu"))
    return None if sampler is None else f"write sampler={sampler!r}"


def advise_guidance(_: Registry[Any], name: str) -> str | None:
    """What to write in place of a number, or of an option alone, for a guidance; None for other texts."""
    option, equals, value = name.partition("=")
    if _is_number(name):
        return f"did you mean cfg:scale={name.strip()}?"
    if equals and option.strip() in ("scale", "guidance_scale", "guidance-scale", "w"):
        return f"did you mean cfg:scale={value.strip()}?"
    return None


def advise_grid(_: Registry[Any], name: str) -> str | None:
    """What to write in place of a number for a grid; None for other texts."""
    if not _is_number(name):
        return None
    number = name.strip()
    steps = f"a number of steps is steps={number}, or --steps {number}"
    return f"a grid has a name, did you mean karras:rho={number}? And {steps}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _stem(samplers: Registry[Any], whole: str, stem: str) -> str | None:
    """The sampler that `stem` names, with the options that it stands for; None for no name or the whole one."""
    if stem == whole:
        return None
    try:
        found, options = samplers.resolve(stem)
    except UnknownName:
        return None
    given = ",".join(f"{option}={value}" for option, value in options.items())
    return f"{found}:{given}" if given else found
