"""What dinit knows of a published checkpoint: whose it is, how its names read, and what it was trained on."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from dinit.checkpoints.keymap import KeyMap
from dinit.models.base import BACKBONES
from dinit.registry import Registry

LAYOUTS: Registry[type[Layout]] = Registry("checkpoint layout", "dinit.checkpoints.layouts")

Shapes = Mapping[str, tuple[int, ...]]


class Layout(ABC):
    """One repository's checkpoints. Keys are the foreign ones throughout.

    backbone: the name in BACKBONES of what they become. reference: names of the classes whose state they hold.
    rules: the key map. signature: patterns that no other layout matches all of, each for a whole key of
    the state. process, parameterization: what the published weights were trained on, as mappings.
    guided_channels: how many channels published guidance acts on; None is all. guidance_scale: of the published
    sampling program when nothing is asked of it; 1 is no guidance. pixel_range: of the images trained on, where
    they are pixels.
    """

    backbone: ClassVar[str]
    reference: ClassVar[tuple[str, ...]]
    rules: ClassVar[KeyMap]
    signature: ClassVar[tuple[str, ...]]
    process: ClassVar[dict[str, Any]] = {"name": "vp-discrete", "schedule": "linear"}
    parameterization: ClassVar[dict[str, Any]] = {"name": "epsilon"}
    guided_channels: ClassVar[int | None] = None
    guidance_scale: ClassVar[float] = 4.0
    pixel_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)

    @property
    def model(self) -> type[Any]:
        """Our class. One that is no registered backbone (an upsampler, a classifier) overrides this."""
        return BACKBONES[self.backbone]

    @property
    def denoises(self) -> bool:
        """Whether the class is a backbone that a pipeline can sample with, given labels alone."""
        return self.model in [BACKBONES[name] for name in BACKBONES]

    @abstractmethod
    def options(self, shapes: Shapes) -> dict[str, Any]:
        """Our constructor's arguments, read from the names and shapes of the tensors alone.

        None stands for an argument that left no trace in them, such as the number of heads of a size that was
        never published; it must then be given. Left out is what a default or the caller settles (image_size).
        """

    @abstractmethod
    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        """Our constructor's arguments for those of the reference class; without image_size where it has none.

        ValueError for a value that our class does not cover.
        """

    def prepare(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state as the rules expect it. For what renaming cannot do, such as joining q, k and v."""
        return dict(state)

    def trained_on(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """(process, parameterization) of the published weights with these arguments of ours.

        The class's own; a family that was trained on several overrides this.
        """
        return dict(self.process), dict(self.parameterization)

    def values(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Our arguments that values and not shapes tell."""
        return {}

    def process_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """`process`, with what is stored beside the weights, such as the ends of the noise levels."""
        return dict(self.process)

    def recognises(self, shapes: Shapes) -> bool:
        """Whether a state with these tensors is of this layout."""
        return all(any(re.fullmatch(pattern, key) for key in shapes) for pattern in self.signature)

    def strangers(self, shapes: Shapes) -> int:
        """How many of the names no rule knows."""
        return sum(not any(re.fullmatch(rule.pattern, key) for rule in self.rules) for key in shapes)


def candidates(shapes: Shapes) -> list[str]:
    """Names of the layouts that a state with these tensors may have: several where names cannot tell.

    Of those whose signature is there, the ones that know the most of its names. ValueError where none is.
    """
    found = {name: LAYOUTS[name]() for name in LAYOUTS if LAYOUTS[name]().recognises(shapes)}
    if not found:
        sample = ", ".join(sorted(shapes)[:4])
        raise ValueError(
            f"no known checkpoint layout has these {len(shapes)} tensors (first: {sample}); "
            f"known: {', '.join(LAYOUTS)}"
        )
    if len(found) == 1:
        return list(found)
    strangers = {name: layout.strangers(shapes) for name, layout in found.items()}
    return [name for name in found if strangers[name] == min(strangers.values())]


def recognise(shapes: Shapes) -> Layout:
    """The layout of a state, told from the names of its tensors. ValueError where it is none or several."""
    found = candidates(shapes)
    if len(found) > 1:
        raise ValueError(f"these tensors could be of {', '.join(found)}; say which with layout=")
    return LAYOUTS[found[0]]()


def count(shapes: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the pattern's group takes among the keys; 0 where none matches."""
    numbers = [int(match[1]) for key in shapes if (match := re.match(pattern, key))]
    return max(numbers) + 1 if numbers else 0


def check_fixed(owner: str, given: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """ValueError where a reference argument has another value than the only one that we cover."""
    for name, value in fixed.items():
        if name in given and given[name] != value:
            raise ValueError(f"{owner} with {name} = {given[name]!r} is not covered; published is {value!r}")


def published(backbone: str, argument: str, **known: Any) -> Any:
    """The value of an argument in the presets that have all the known ones; None where none has or they differ."""
    presets = [p for p in BACKBONES[backbone].presets.values() if all(p.get(k) == v for k, v in known.items())]
    values = [preset.get(argument) for preset in presets]
    return values[0] if values and all(value == values[0] for value in values) else None
