"""`dinit train R --steps 5`: the recipe's key that an option of another program means."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from dinit.training.recipe.keys import dotted_keys

_FIRST = ("training", "optimizer", "schedule", "ema")  # sections, in whose order keys of one name are suggested
# What other programs call a key.
_CALLED = {
    "learning_rate": "optimizer.lr",
    "num_workers": "training.workers",
    "num_steps": "training.steps",
    "max_steps": "training.steps",
    "iterations": "training.steps",
    "bs": "training.batch_size",
    "train_batch_size": "training.batch_size",
    "grad_clip": "training.clip_norm",
    "mixed_precision": "training.precision",
    "warmup": "schedule.warmup_steps",
    "ema_decay": "ema.decay",
    "model": "backbone",
    "image_size": "data.size",
    "resolution": "data.size",
    "size": "data.size",
}


def advice(option: str, value: str | None, own: Sequence[str] = ()) -> str | None:
    """What to write in place of an option that `dinit train` does not have.

    Args:
        option: such as --steps.
        value: what stands after it.
        own: the options that it has.

    Returns:
        The message; None where no key is near, or where an own option is nearer.
    """
    name = option.lstrip("-").replace("-", "_")
    if name in ("epochs", "num_epochs"):
        return (
            f"no such option {option}: a recipe counts steps, training.steps=N; N is epochs × images / batch size"
        )
    known = {key.rpartition(".")[2] for key in dotted_keys()} | _CALLED.keys()
    if name not in known and difflib.get_close_matches(option, own, n=1, cutoff=0.7):
        return None
    keys = _keys(name)
    if not keys:
        return None
    given = "VALUE" if value is None or value.startswith("-") else value
    written = [f"{key}={given}" for key in keys]
    return f"no such option {option}: values of the recipe are written as {' or '.join(written)}"


def _keys(name: str) -> list[str]:
    """Dotted keys of a recipe that a name means, the likeliest first."""
    known = dotted_keys()
    if name in known and "." in name:
        return [name]
    if name in _CALLED:
        return [_CALLED[name]]
    by_leaf: dict[str, list[str]] = {}
    for key in known:
        by_leaf.setdefault(key.rpartition(".")[2], []).append(key)
    near = [name] if name in by_leaf else difflib.get_close_matches(name, [*by_leaf, *_CALLED], n=1, cutoff=0.75)
    if not near:
        return []
    found = by_leaf.get(near[0]) or [_CALLED[near[0]]]
    order = {section: place for place, section in enumerate(_FIRST)}
    return sorted(found, key=lambda key: order.get(key.partition(".")[0], len(order)))[:2]
