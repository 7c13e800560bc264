"""Checkpoint layouts: the key map of a repository's checkpoints, their signature, and what they were trained on."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from dinit.checkpoints.claims import Claim, Pair, chain, named_claims, size_claims
from dinit.checkpoints.keymap import KeyMap
from dinit.checkpoints.stored import RunArguments
from dinit.diffusion import Process
from dinit.diffusion.discrete import BetaChain
from dinit.models.base import BACKBONES
from dinit.registry import Registry

LAYOUTS: Registry[type[Layout]] = Registry("checkpoint layout", "dinit.checkpoints.layouts")

# In place of the adaptive solver of SiT's program, whose cost is unknown beforehand: the same ODE.
ODE_STEPS: Mapping[str, Any] = {"sampler": {"name": "heun"}, "steps": 50}

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
        label_table: Pattern of the key of the label table, or of one of several; None without.
        null_row: Whether the published program has a row of the label table for the null label.
        always_null_row: Whether it cannot be without.
        lone_null_row: Whether dinit's class has a label table without classes too, for the null label alone.
        stated_names: Names of arguments of dinit's class in the arguments of the program's runs.
        image_size_in_tensors: Whether `options` reads image_size off a table, and does not assume a published one.
        clips: Whether the published program clips the posterior mean to the range of the images.
        normalizes_latents: Whether the program normalises latents by the mean and deviation of each channel.
        chain_steps: Steps of the published sampling program on a chain of betas.
    """

    registry_name: ClassVar[str]
    backbone: ClassVar[str]
    reference: ClassVar[tuple[str, ...]]
    rules: ClassVar[KeyMap]
    signature: ClassVar[tuple[str, ...]]
    process: ClassVar[dict[str, Any]] = {"name": "vp-discrete", "schedule": "linear"}
    parameterization: ClassVar[dict[str, Any]] = {"name": "epsilon"}
    guided_channels: ClassVar[int | None] = None
    guidance_scale: ClassVar[float] = 4.0
    pixel_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    label_table: ClassVar[str | None] = None
    null_row: ClassVar[bool] = True
    always_null_row: ClassVar[bool] = False
    lone_null_row: ClassVar[bool] = True
    stated_names: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    image_size_in_tensors: ClassVar[bool] = True
    clips: ClassVar[bool] = False
    normalizes_latents: ClassVar[bool] = False
    chain_steps: ClassVar[int] = 250

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

    def sampling(self, process: Process, learned: bool) -> dict[str, Any]:
        """Sampler, steps and grid of the published sampling program, as defaults of a pipeline.

        Args:
            process: What the weights were trained on.
            learned: Whether the network learned its variance.
        """
        if isinstance(process, BetaChain):
            variance = "learned-range" if learned else "fixed-large"
            steps = min(self.chain_steps, process.num_steps)
            return {"sampler": {"name": "ddpm", "variance": variance}, "steps": steps, "grid": {"name": "respaced"}}
        if process.registry_name in ("flow", "gvp"):
            return dict(ODE_STEPS)
        return {"sampler": {"name": "euler-maruyama"}, "steps": 1000}

    def guidance(self, guided: bool) -> list[dict[str, Any]]:
        """Guidance of the published sampling program, as a default of a pipeline.

        Args:
            guided: Whether the network has classes and a null label.
        """
        cfg = {"name": "cfg", "scale": self.guidance_scale, "channels": self.guided_channels}
        low, high = self.pixel_range
        clip = {"name": "clip-x0", **({} if (low, high) == (-1.0, 1.0) else {"low": low, "high": high})}
        return [*([cfg] if guided and self.guidance_scale != 1 else []), *([clip] if self.clips else [])]

    def label_rows(self, shapes: Shapes) -> int | None:
        """Rows of the label table; None where there is none.

        Args:
            shapes: Key to shape.
        """
        tables = [] if self.label_table is None else [k for k in shapes if re.fullmatch(self.label_table, k)]
        return shapes[tables[0]][0] if tables else None

    def claims(self, run: RunArguments) -> list[Claim]:
        """The arguments of dinit's class that the arguments of a run state.

        Args:
            run: The run's arguments.

        Raises:
            ValueError: An argument in two places with different values, or one of a wrong type.
        """
        return [*size_claims(run, self.backbone), *named_claims(run, self.stated_names)]

    def stated_training(self, run: RunArguments, published: Pair) -> Pair:
        """Process and parameterization by the arguments of a run, `published` where they state nothing.

        Here those of guided-diffusion and its descendants; a family of another kind overrides this.

        Args:
            run: The run's arguments.
            published: Process and parameterization of the published weights.

        Raises:
            ValueError: An unknown value.
        """
        return chain(run, published)

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


def with_null_class(reference: Mapping[str, Any]) -> dict[str, Any]:
    """The published class's arguments with its label dropout, which adds the null label's row, as null_class."""
    given = dict(reference)
    return given if given.pop("class_dropout_prob", None) != 0 else {**given, "null_class": False}


def published(backbone: str, argument: str, **known: Any) -> Any:
    """The value of an argument in the presets that have all the known ones; None where none has or they differ."""
    presets = [p for p in BACKBONES[backbone].presets.values() if all(p.get(k) == v for k, v in known.items())]
    values = [preset.get(argument) for preset in presets]
    return values[0] if values and all(value == values[0] for value in values) else None
