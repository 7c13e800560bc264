"""One call of a pipeline, validated whole: what a manifest records and a replay repeats."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dinit.checkpoints.interop.scheduler_sampler import SchedulerGrid, SchedulerSampler
from dinit.diffusion import Process
from dinit.registry import Registry, suggest
from dinit.samplers import GRIDS, SAMPLERS, Sampler, TimeGrid
from dinit.samplers.grids.base import Times, default_grid
from dinit.samplers.guidance import GUIDANCES, Guidance

DEFAULT_BATCH = 64  # bounds memory; images do not depend on it
DEFAULT_KEYS = ("sampler", "steps", "grid", "guidance")

Label = int | str | None


@dataclass(frozen=True)
class Call:
    """Everything that decides the images of a call, beside the pipeline.

    labels: one an image, None is the null class. keys: (seed, image index), one an image; see NoiseSource.
    guidance: applied in order, the last is the outermost. batch_size: changes speed, not images.
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
        """The same call cut into calls of at most batch_size images."""
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
        """The call that `to_config` wrote. ValueError where a value is missing or of the wrong kind."""
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


def to_spec(value: Any) -> Any:
    """Plain values for a registered object, and for what it is made of.

    A registered dataclass becomes {"name": ..., **fields}, which `from_spec` and its registry's `create` turn
    back; a dataclass of numbers and words inside it becomes a mapping of its fields. Infinity, which JSON has not,
    becomes "inf". Anything else that JSON cannot say becomes its repr, which
    no registry accepts: such a call is recorded, not replayed.
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


def _is_plain(value: Any) -> bool:
    """Whether the value is a number, a word, None, or a sequence of such."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str))


def from_spec(spec: Any) -> Any:
    """What a registry's `create` takes, from the plain values of `to_spec`; any other object as it is."""
    if isinstance(spec, Mapping):
        return {key: from_spec(value) for key, value in spec.items()}
    if isinstance(spec, list):
        return [from_spec(value) for value in spec]
    return float(spec) if isinstance(spec, str) and spec in ("inf", "-inf", "nan") else spec


def make_sampler(spec: Any) -> Sampler:
    """A sampler from a name, a mapping with options, or an object. ValueError for anything else."""
    return _create(SAMPLERS, Sampler, spec)


def make_guidance(spec: Any) -> tuple[Guidance, ...]:
    """One guidance or several, each as `make_sampler` takes a sampler; None and an empty list are none."""
    if spec is None:
        return ()
    specs = [spec] if isinstance(spec, (str, Mapping, Guidance)) else list(spec)
    return tuple(_create(GUIDANCES, Guidance, one) for one in specs)


def make_grid(spec: Any, steps: int | None, process: Process) -> tuple[TimeGrid, int]:
    """The grid and its number of steps. Times given one by one bring their own number.

    spec: a TimeGrid, a name, a mapping with options, a tensor of times, or None for the process's usual grid.
    """
    if isinstance(spec, Tensor):
        spec = Times(tuple(spec.double().flatten().tolist()))
    grid: TimeGrid = default_grid(process) if spec is None else _create(GRIDS, TimeGrid, spec)
    if steps is None and isinstance(grid, Times):
        steps = len(grid.values)  # pyright: ignore[reportAttributeAccessIssue]
    if steps is None:
        raise ValueError("give the number of steps; this pipeline has no default")
    return grid, whole_number("steps", steps)


def make_keys(seed: int | Sequence[int], count: int, start_index: int) -> tuple[tuple[int, int], ...]:
    """One (seed, image index) an image: one seed counts images from start_index, a list is image 0 of each."""
    if isinstance(seed, Tensor):
        seed = seed.tolist()
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        if start_index:
            raise ValueError(f"start_index = {start_index} goes with one seed, not with a seed an image")
        if len(seed) != count:
            raise ValueError(f"give one seed, or one for each of {count} images; got {len(seed)}")
        return tuple((_integer("seed", one), 0) for one in seed)
    first = _integer("start_index", start_index)
    if first < 0:
        raise ValueError(f"start_index must be 0 or more, got {first}")
    return tuple((_integer("seed", seed), first + k) for k in range(count))


def resolve_labels(
    labels: Label | Sequence[Label] | Tensor,
    num_images: int | None,
    num_classes: int,
    class_names: Sequence[str] | None,
) -> tuple[int | None, ...]:
    """Class numbers, one an image; None is the null class.

    labels: a number or a name, or a sequence of them; one alone is repeated num_images times; None with
    num_images is unconditional. ValueError for unknown names, numbers out of range, or counts that disagree.
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
        raise ValueError(f"class {number} is out of range: this pipeline has classes 0 .. {num_classes - 1}")
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


def _create(registry: Registry[Any], kind: type, spec: Any) -> Any:
    """The registry's object. ValueError where an option is of a wrong type, or it is no `kind`."""
    try:
        value = _of_diffusers(kind, spec) or registry.create(from_spec(spec))
    except TypeError as error:  # an option of a wrong type: "'<' not supported between instances of ..."
        raise ValueError(f"{registry.kind} {spec!r} cannot be made: {error}") from error
    if not isinstance(value, kind):
        noun = registry.kind
        raise ValueError(f"{noun} must be a {kind.__name__}, a name, or a mapping with options; got {value!r}")
    return value


def _of_diffusers(kind: type, spec: Any) -> Any:
    """The sampler, or the grid, of a diffusers scheduler from its record; None where the spec is none."""
    made = {Sampler: SchedulerSampler, TimeGrid: SchedulerGrid}.get(kind)
    if made is None or not isinstance(spec, Mapping) or spec.get("name") != made.registry_name:
        return None
    return made(**{key: from_spec(value) for key, value in spec.items() if key != "name"})
