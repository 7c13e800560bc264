"""Call of a pipeline, validated: what a manifest records and a replay repeats."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from numbers import Real
from typing import Any, Final, TypedDict, TypeVar

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from dinit.checkpoints.interop.scheduler_sampler import SchedulerSampler, sampler_from_diffusers
from dinit.registry import Registry, suggest
from dinit.samplers import GRIDS, SAMPLERS, Sampler, TimeGrid
from dinit.samplers.grids.times import Times
from dinit.samplers.guidance import GUIDANCES, Guidance
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.points import GridLike

DEFAULT_BATCH = 64  # bounds memory; images do not depend on it
DEFAULT_KEYS = ("sampler", "steps", "grid", "guidance")


class Default(Enum):
    """The type of `DEFAULT`, for an argument whose None means something."""

    DEFAULT = "default"

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Default.DEFAULT
"""Stands for the pipeline's own default in `guidance=`, where None is no guidance."""

Part = TypeVar("Part")
Label = int | str | None
Labels = Label | Sequence[Label] | Tensor
SamplerLike = Sampler | SchedulerMixin | str | Mapping[str, Any]
GuidanceLike = Guidance | float | str | Mapping[str, Any]
Seeds = int | Sequence[int] | Tensor
Generators = torch.Generator | Sequence[torch.Generator]


class SamplingOptions(TypedDict, total=False):
    """The keywords of a pipeline's call that decide how to sample; `Pipeline.__call__` documents each."""

    sampler: SamplerLike | None
    steps: int | None
    grid: GridLike | None
    guidance: GuidanceLike | Sequence[GuidanceLike] | Default | None
    batch_size: int | None
    guidance_scale: float | None
    num_inference_steps: int | None
    eta: float | None


class CallOptions(SamplingOptions, total=False):
    """The keywords of a pipeline's call that decide the images."""

    num_images: int | None
    seed: Seeds | None
    start_index: int
    class_labels: Labels
    generator: Generators | None


@dataclass(frozen=True)
class Call:
    """Everything that decides the images of a call, besides the pipeline.

    Args:
        labels: One an image, at least one; None is the null class.
        keys: (seed, image index), one an image; see NoiseSource.
        sampler: Of the images.
        steps: Sampling steps, at least 1.
        grid: Where they fall.
        guidance: Applied in order, the last is the outermost.
        batch_size: Images in one network evaluation at most, at least 1; images do not depend on it.

    Raises:
        ValueError: No labels; another number of keys than labels.
    """

    labels: tuple[int | None, ...]
    keys: tuple[tuple[int, int], ...]
    sampler: Sampler
    steps: int
    grid: TimeGrid
    guidance: tuple[Guidance, ...]
    batch_size: int

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.keys):
            raise ValueError(f"{len(self.labels)} labels need as many noise keys, got {len(self.keys)}")
        if not self.labels:
            raise ValueError("nothing to generate: give at least one label")

    def batches(self) -> list[Call]:
        """The same call, cut into calls of at most batch_size images each."""
        starts = range(0, len(self.labels), self.batch_size)
        cuts = [slice(start, start + self.batch_size) for start in starts]
        return [dataclasses.replace(self, labels=self.labels[c], keys=self.keys[c]) for c in cuts]

    def to_config(self) -> dict[str, Any]:
        """Plain values, for JSON. `Call.from_config` makes the call again."""
        return {
            "labels": list(self.labels),
            "seeds": [list(key) for key in self.keys],
            "sampler": to_spec(self.sampler),
            "steps": self.steps,
            "grid": to_spec(self.grid),
            "guidance": to_spec(self.guidance),
            "batch_size": self.batch_size,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Call:
        """The call that `to_config` wrote.

        Args:
            config: Plain values, with the keys of `to_config`.

        Returns:
            The call, with its sampler, grid and guidance made from the registries.

        Raises:
            ValueError: A value that is missing or of a wrong type; a name or an option that is not registered.
        """
        try:
            return cls(
                labels=tuple(None if label is None else operator.index(label) for label in config["labels"]),
                keys=tuple((operator.index(seed), operator.index(index)) for seed, index in config["seeds"]),
                sampler=make_sampler(config["sampler"]),
                steps=whole_number("steps", config["steps"]),
                grid=_create(GRIDS, TimeGrid, config["grid"]),
                guidance=make_guidance(config["guidance"]),
                batch_size=whole_number("batch_size", config["batch_size"]),
            )
        except (LookupError, TypeError) as error:
            raise ValueError(f"this record of a call is damaged: {error}") from error


def to_spec(value: object) -> Any:
    """Plain values for a registered object, and for what it is made of.

    A registered dataclass becomes {"name": ..., **fields}, from which `from_spec` and its registry's `create` make
    it again; a dataclass of numbers and strings inside it becomes a mapping of its fields. Infinity, which JSON
    does not have, becomes "inf". Any other value becomes its repr, which no registry accepts: such a call is
    recorded, but cannot be replayed.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_spec(entry) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [to_spec(entry) for entry in value]
    name = getattr(value, "registry_name", None)
    if dataclasses.is_dataclass(value) and name is not None:
        fields = {f.name: to_spec(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"name": name, **fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        if all(map(_is_plain, fields.values())):  # a part of a sampler: a solver's rule, a restart interval
            return to_spec(fields)
    return repr(value)


def _is_plain(value: object) -> bool:
    """Whether the value is a number, a string, None, or a sequence of such."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def from_spec(spec: object) -> Any:
    """What a registry's `create` takes, from the plain values of `to_spec`; any other object as it is."""
    if isinstance(spec, Mapping):
        return {key: from_spec(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [from_spec(value) for value in spec]
    return float(spec) if isinstance(spec, str) and spec in ("inf", "-inf", "nan") else spec


def make_sampler(spec: SamplerLike, eta: float | None = None) -> Sampler:
    """The sampler that a spec stands for.

    Args:
        spec: a Sampler, a name ("heun"), a name with options ("ddim:eta=0.5"), a mapping ({"name": "ddim", "eta":
            0.5}), or a diffusers scheduler, which `dinit.checkpoints.from_diffusers.sampler_from_diffusers` reads.
        eta: in place of the sampler's own, as DDIMPipeline takes it.

    Raises:
        ValueError: anything else; an option out of range; eta for a sampler that has none.
    """
    if isinstance(spec, type) and issubclass(spec, SchedulerMixin):
        made = f"{spec.__name__}.from_config(pipe.scheduler.config)"
        raise ValueError(f"a sampler is an object, got the class {spec.__name__}: make one, {made}")
    sampler = sampler_from_diffusers(spec) if isinstance(spec, SchedulerMixin) else _create(SAMPLERS, Sampler, spec)
    return sampler if eta is None else _with_eta(sampler, eta)


def _with_eta(sampler: Sampler, eta: float) -> Sampler:
    """The sampler with another eta, its share of the noise of the reverse process."""
    if isinstance(sampler, SchedulerSampler):
        return dataclasses.replace(sampler, options={**sampler.options, "eta": eta})
    if "eta" not in {field.name for field in dataclasses.fields(sampler) if field.init}:
        having = [name for name in SAMPLERS if "eta" in getattr(SAMPLERS[name], "__dataclass_fields__", {})]
        raise ValueError(f"{type(sampler).__name__} has no eta; samplers that have: {', '.join(having)}")
    return dataclasses.replace(sampler, eta=eta)  # type: ignore[call-arg]


def make_guidance(spec: GuidanceLike | Sequence[GuidanceLike] | None) -> tuple[Guidance, ...]:
    """The guidances that a spec stands for.

    Args:
        spec: one guidance or a sequence of them, the last outermost. Each is a Guidance, a name with or without
            options ("cfg:scale=4"), a mapping, or a number, which is the scale of CFG. None, "none" and an empty
            sequence are no guidance.

    Raises:
        ValueError: anything else; an option out of range.
    """
    if spec is None or spec == "none":
        return ()
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        return tuple(_one_guidance(one) for one in spec)
    return (_one_guidance(spec),)


def _one_guidance(spec: GuidanceLike) -> Guidance:
    if isinstance(spec, bool):
        raise ValueError(
            f"guidance = {spec} is not a scale: None or [] is no guidance, a number the scale of CFG, and what is "
            "left out is the pipeline's default"
        )
    return CFG(float(spec)) if isinstance(spec, Real) else _create(GUIDANCES, Guidance, spec)


def guidance_at_scale(default: tuple[Guidance, ...], scale: float) -> tuple[Guidance, ...]:
    """The default guidance with CFG at diffusers' `guidance_scale`; a scale of 1 or less is no CFG, as there.

    Args:
        default: the pipeline's own guidance. What is not CFG in it, such as clipping, stays.
        scale: of CFG. Ho & Salimans' w is scale - 1.

    Raises:
        ValueError: not a number; the default guides by another method than CFG, which may mean another scale.
    """
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise ValueError(f"guidance_scale must be a number, got {scale!r}")
    others = [one for one in default if hasattr(one, "scale") and not isinstance(one, CFG)]
    if others:
        raise ValueError(
            f"guidance_scale is the scale of CFG, and the default guidance of this pipeline is {others[0]!r}: give "
            "the whole guidance as guidance="
        )
    if scale <= 1:
        return tuple(one for one in default if not isinstance(one, CFG))
    if not any(isinstance(one, CFG) for one in default):
        return (CFG(float(scale)), *default)
    return tuple(dataclasses.replace(one, scale=float(scale)) if isinstance(one, CFG) else one for one in default)


def make_grid(spec: GridLike) -> TimeGrid:
    """The grid that a spec stands for: a TimeGrid, a name with or without options, a mapping, or times in [0, 1].

    Raises:
        ValueError: anything else; an option out of range.
    """
    if isinstance(spec, Tensor):
        return Times(tuple(spec.double().flatten().tolist()))
    return _create(GRIDS, TimeGrid, spec)


def make_keys(
    seed: Seeds | None, count: int, start_index: int = 0, generator: Generators | None = None
) -> tuple[tuple[int, int], ...]:
    """The keys of the images' noise, one (seed, image index) an image; see NoiseSource.

    Args:
        seed: one seed, whose images count from start_index; a seed an image, each of image 0; or None, which draws
            one seed from torch's default generator.
        count: number of images.
        start_index: index of the first image of one seed.
        generator: in place of seed. Each generator gives one draw, a whole number in [0, 2^63 - 1), and is advanced
            by it. The draw of one generator is the one seed; those of a list are a seed an image. The same state
            therefore gives the same images, two calls in a row give different ones, and the images are not those
            that diffusers makes of this generator.

    Raises:
        ValueError: another number of seeds than images; both seed and generator; not whole numbers.
    """
    if generator is not None:
        if not (isinstance(seed, int) and seed == 0):
            raise ValueError("seed and generator both decide the noise; give one of them")
        seed = _seeds_of(generator)
    if seed is None:
        seed = _draw_seed(None)
    if isinstance(seed, Tensor):
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if start_index:
            raise ValueError(f"start_index = {start_index} goes with one seed, not with a seed an image")
        if len(seed) != count:
            raise ValueError(f"give one seed, or one for each of {count} images; got {len(seed)}")
        return tuple((_integer("seed", one), 0) for one in seed)
    if isinstance(seed, torch.Generator):
        raise ValueError("seed takes whole numbers; give a torch.Generator as generator=")
    first = _integer("start_index", start_index)
    if first < 0:
        raise ValueError(f"start_index must be 0 or more, got {first}")
    return tuple((_integer("seed", seed), first + k) for k in range(count))


def _seeds_of(generator: Generators) -> int | list[int]:
    if isinstance(generator, torch.Generator):
        return _draw_seed(generator)
    if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
        raise ValueError(
            f"generator must be a torch.Generator or a list of them, got {generator!r}; see also seed="
        )
    return [_draw_seed(one) for one in generator]


def _draw_seed(generator: torch.Generator | None) -> int:
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def resolve_labels(
    labels: Label | Sequence[Label] | Tensor,
    num_images: int | None,
    num_classes: int,
    class_names: Sequence[str] | None,
) -> tuple[int | None, ...]:
    """Class numbers, one an image; None is the null class.

    Args:
        labels: A number or a name, or a sequence of them. One alone is repeated num_images times; None is no class.
        num_images: Number of images; None for one a label.
        num_classes: Of the pipeline; 0 for an unconditional one.
        class_names: Of the pipeline, by number; None where it has none.

    Raises:
        ValueError: An unknown name; a number out of range; another number of labels than of images.
    """
    if num_images is not None:
        num_images = whole_number("num_images", num_images)
    if hasattr(labels, "tolist"):
        labels = labels.tolist()  # type: ignore[union-attr]
    if labels is None or isinstance(labels, str) or not isinstance(labels, Sequence):
        one = _class_number(labels, num_classes, class_names)  # type: ignore[arg-type]
        return (one,) * (1 if num_images is None else num_images)
    if num_images is not None and num_images != len(labels):
        raise ValueError(f"num_images = {num_images} contradicts {len(labels)} labels; leave num_images out")
    if not labels:
        raise ValueError("labels are empty; give at least one, or None with num_images for no class")
    return tuple(_class_number(label, num_classes, class_names) for label in labels)


def _class_number(label: Label, num_classes: int, class_names: Sequence[str] | None) -> int | None:
    if label is None:
        return None
    if num_classes == 0:
        raise ValueError(f"this pipeline is unconditional, it takes no label {label!r}; give num_images instead")
    if isinstance(label, str):
        if class_names and label in class_names:
            return list(class_names).index(label)
        if not label.isdecimal():
            if not class_names:
                raise ValueError(f"unknown class {label!r}: this pipeline has no class names, give numbers")
            raise ValueError(f"unknown class {label!r}{_near(label, class_names)}")
        label = int(label)
    number = _integer("a label", label)
    if not 0 <= number < num_classes:
        null = "; no class, the null class, is None" if number == num_classes else ""
        raise ValueError(f"class {number} is out of range: this pipeline has classes 0 .. {num_classes - 1}{null}")
    return number


def _near(name: str, class_names: Sequence[str]) -> str:
    """The end of the message for an unknown class: the nearest name, and all of them where they are few."""
    if len(class_names) <= 20:
        return suggest(name, list(class_names))
    return suggest(name, list(class_names)).split(" (known", 1)[0] + f" ({len(class_names)} classes)"


def whole_number(what: str, value: Any) -> int:
    """An int of at least 1. ValueError for anything else."""
    number = _integer(what, value)
    if number < 1:
        raise ValueError(f"{what} must be at least 1, got {number}")
    return number


def _integer(what: str, value: Any) -> int:
    if isinstance(value, bool):
        raise ValueError(f"{what} must be a whole number, got {value!r}")
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{what} must be a whole number, got {value!r}") from None


def _create(registry: Registry[Callable[..., Part]], kind: type[Part], spec: object) -> Part:
    """The registry's object. ValueError where it is no `kind`."""
    value = registry.create(from_spec(spec))
    if not isinstance(value, kind):
        raise ValueError(
            f"{registry.kind} must be a {kind.__name__}, a name, or a mapping with options; got {value!r}"
        )
    return value
