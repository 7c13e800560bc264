"""Checkpoint layouts: the key map of a repository's checkpoints, their signature, and what they were trained on."""

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
    """The layout of one repository's checkpoints. Keys are those of the checkpoint throughout.

    Attributes:
        backbone: The name in BACKBONES of dinit's class.
        reference: Names of the published classes whose state it is.
        rules: The key map.
        signature: Patterns, each for a whole key; no other layout matches all of them.
        process: What the published weights were trained on, as a mapping with 'name'.
        parameterization: The same of the parameterization.
        guided_channels: How many channels published guidance acts on; None is all.
        guidance_scale: The default of the published sampling program; 1 is no guidance.
        pixel_range: The range of the training images, where they are pixels.
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
        """The arguments of dinit's class, inferred from the names and shapes of the tensors alone.

        Args:
            shapes: Key to shape.

        Returns:
            Argument to value. None is a value that cannot be inferred, such as the number of heads of an
            unpublished size, and must be given. Arguments that have a default or that the caller sets (image_size)
            are absent.
        """

    @abstractmethod
    def arguments(self, reference: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of dinit's class for those of the published class; without image_size where it has none.

        Args:
            reference: The published class's arguments.

        Returns:
            Argument to value; an implementation raises ValueError for a value that dinit's class does not cover.
        """

    def prepare(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The `state` as the rules expect it. For what renaming cannot do, such as joining q, k and v."""
        return dict(state)

    def trained_on(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the published weights with these `options` were trained on: (process, parameterization).

        Here the class's own; a family that was trained on several overrides this.
        """
        return dict(self.process), dict(self.parameterization)

    def values(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Arguments of dinit's class that are inferred from the values in `state`, not from shapes."""
        return {}

    def process_of(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """`process`, with the settings stored in `state`, such as the ends of the noise levels."""
        return dict(self.process)

    def tables(self, backbone: Any) -> dict[str, Tensor]:
        """Fixed tables of `backbone`, dinit's class, under the names that the published network stores them by."""
        return {}

    def recognises(self, shapes: Shapes) -> bool:
        """Whether a state with tensors of these `shapes` is of this layout."""
        return all(any(re.fullmatch(pattern, key) for key in shapes) for pattern in self.signature)

    def strangers(self, shapes: Shapes) -> int:
        """The number of names in `shapes` that no rule matches."""
        return sum(not any(re.fullmatch(rule.pattern, key) for rule in self.rules) for key in shapes)


def candidates(shapes: Shapes) -> list[str]:
    """Names of the layouts that a state with these tensors may have: several where names and shapes do not decide.

    Of the layouts whose signature matches, those whose rules match the most names. ValueError where none does.
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
    """The layout of a state, from the names of its tensors. ValueError where it is none or several."""
    found = candidates(shapes)
    if len(found) > 1:
        raise ValueError(f"these tensors could be of {', '.join(found)}; choose one with layout=")
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
