"""Recognition of a checkpoint's layout, with evidence: some families' tensors have the same names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinit.checkpoints.layouts import LAYOUTS, Layout, candidates

_HEAD = "final_layer.linear"


@dataclass(frozen=True)
class Recognised:
    """A checkpoint's layout, and what it was recognised by.

    Args:
        name: In LAYOUTS.
        evidence: What decided, in words.
    """

    name: str
    evidence: str

    @property
    def layout(self) -> Layout:
        """The layout of that name."""
        return LAYOUTS[self.name]()


def recognise_state(
    state: Mapping[str, Tensor], path: Path, args: Mapping[str, Any], layout: str | None = None
) -> Recognised:
    """Recognise a state's layout from its tensors' names, else its run's arguments, its values, its file name.

    Args:
        state: The tensors under their original names.
        path: The file or folder; its name is the last evidence.
        args: The arguments stored in a training checkpoint; `model` in it ("SiT-XL/2") names the class.
        layout: The layout, if it is known; it is only checked then.

    Returns:
        The layout's name, and the evidence.

    Raises:
        ValueError: nothing decides, the values contradict the file name, or the tensors are not of the given
            layout.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    if layout is not None:
        if not LAYOUTS[layout]().recognises(shapes):
            found = _or_none(shapes)
            raise ValueError(f"{path} has not the tensors of layout {layout!r}; they are of {found}")
        return Recognised(layout, "it was given")
    found = candidates(shapes)
    if len(found) == 1:
        return Recognised(found[0], "by the names of its tensors")
    model = str(args.get("model", ""))
    named = _named(model, found)
    if len(named) == 1:
        return Recognised(named[0], f"the checkpoint's arguments name {model}")
    return _by_values(state, path, found)


def _by_values(state: Mapping[str, Tensor], path: Path, found: list[str]) -> Recognised:
    by_name = _named(path.name, found)
    strong, weak = _dit_or_sit(state) if set(found) == {"dit", "sit"} else (None, None)
    if strong is not None:
        if by_name and by_name != [strong.name]:
            raise ValueError(
                f"{path.name} is named as {by_name[0]}, but {strong.evidence}, as in {strong.name}; "
                f"give the layout: --layout {' or --layout '.join(found)}"
            )
        return strong
    if len(by_name) == 1:
        return Recognised(by_name[0], f"the file's name is {path.name}")
    if weak is not None:
        return weak
    raise ValueError(
        f"the tensors of {path} could be of {' or '.join(found)}, and neither the data stored with them nor the "
        f"file's name decides; give the layout: --layout {' or --layout '.join(found)}"
    )


def _dit_or_sit(state: Mapping[str, Tensor]) -> tuple[Recognised | None, Recognised | None]:
    """Evidence in the head, as (certain, likely). Its rows are patch positions times channels, channels last.

    SiT drops the second half of the channels, so that half never had a gradient and is still zero, as it was
    initialised; in DiT it is the learned variance. A head that is not doubled is that of SiT at 512 px: all
    published DiTs learn their variance.
    """
    weight, patch = state[f"{_HEAD}.weight"], state["x_embedder.proj.weight"]
    channels = patch.shape[1]
    if len(weight) != 2 * channels * patch.shape[2] * patch.shape[3]:
        return None, Recognised("sit", "its head has no half for a variance, which every published DiT has")
    rows = torch.cat([weight, state[f"{_HEAD}.bias"][:, None]], dim=1).reshape(
        -1, 2 * channels, weight.shape[1] + 1
    )
    first, second = bool(rows[:, :channels].any()), bool(rows[:, channels:].any())
    if second:
        return Recognised("dit", "the second half of its head was trained"), None
    return (Recognised("sit", "the second half of its head is zero, never trained") if first else None), None


def _named(text: str, found: list[str]) -> list[str]:
    """The layouts whose name or reference class is a word of the text ("SiT-XL-2-256.pt")."""
    words = {word.lower() for word in re.split(r"[^A-Za-z0-9]+", text)}
    return [name for name in found if words & {name, *(one.lower() for one in LAYOUTS[name].reference)}]


def _or_none(shapes: Mapping[str, tuple[int, ...]]) -> str:
    try:
        return " or ".join(candidates(shapes))
    except ValueError:
        return f"no known layout (known: {', '.join(LAYOUTS)})"
