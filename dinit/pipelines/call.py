"""Call of a pipeline, validated: what a manifest records and a replay repeats."""

from __future__ import annotations

import dataclasses
import operator
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from numbers import Real
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar

import numpy as np
from torch import Tensor

from dinit.arguments import shown
from dinit.checkpoints.interop.scheduler_sampler import SchedulerSampler, sampler_from_diffusers
from dinit.compat import is_light
from dinit.inverse.measurement import Measurement
from dinit.inverse.samplers.base import POSTERIOR_SAMPLERS, PosteriorSampler
from dinit.pipelines.given import Given
from dinit.pipelines.index_checks import kinds_of
from dinit.pipelines.labels import Generators, Labels, Seeds, whole_number
from dinit.pipelines.method import MethodLike
from dinit.pipelines.pictures import ImageLike, PictureLike
from dinit.pipelines.plain import from_spec, to_spec
from dinit.registry import Registry
from dinit.reuse.caches.base import CACHES, Cache
from dinit.reuse.edits.base import EDITS, Edit
from dinit.samplers import GRIDS, SAMPLERS, Sampler, TimeGrid
from dinit.samplers.grids.times import Times
from dinit.samplers.guidance import GUIDANCES, Guidance
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.idle import IdleOption
from dinit.samplers.points import End, GridLike, check_end, times_of

if TYPE_CHECKING or not is_light():
    from diffusers.schedulers.scheduling_utils import SchedulerMixin
else:
    from dinit.pipelines.light import SchedulerMixin

DEFAULT_BATCH = 64  # bounds memory; images do not depend on it
DEFAULT_KEYS = ("sampler", "steps", "grid", "end", "guidance")
_USUAL_END: Final = "posterior-mean"  # not written down, so that older records read as they were


class Default(Enum):
    """The type of `DEFAULT`, for an argument whose None means something."""

    DEFAULT = "default"

    def __repr__(self) -> str:
        return "DEFAULT"


DEFAULT: Final = Default.DEFAULT
"""Stands for the pipeline's own default in `guidance=`, where None is no guidance."""

Part = TypeVar("Part")
SamplerLike = Sampler | SchedulerMixin | str | Mapping[str, Any]
GuidanceLike = Guidance | float | str | Mapping[str, Any]
CacheLike = Cache | str | Mapping[str, Any]
EditLike = Edit | str | Mapping[str, Any]


class SamplingOptions(TypedDict, total=False):
    """The keywords of a pipeline's call that decide how to sample; `Pipeline.__call__` documents each."""

    sampler: SamplerLike | None
    steps: int | None
    grid: GridLike | None
    end: End | None
    guidance: GuidanceLike | Sequence[GuidanceLike] | Default | None
    batch_size: int | None
    cache: CacheLike | None
    edits: EditLike | Sequence[EditLike] | None
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
    image: ImageLike | None
    strength: float | None
    mask: PictureLike | None
    measurement: Measurement | None
    method: MethodLike | None


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
        end: Of the trajectory; see `Sampler.iterate`.
        given: An image to start from, a mask, a measurement; None for nothing. Of a measurement here, each
            posterior guidance and the posterior sampler without one of its own are given the rows of its batch.
        cache: Of the network's features, below edits' result and all guidance; None is none.
        edits: Of the network, applied in order.

    Raises:
        ValueError: No labels; another number of keys than labels; another end.
    """

    labels: tuple[int | None, ...]
    keys: tuple[tuple[int, int], ...]
    sampler: Sampler
    steps: int
    grid: TimeGrid
    guidance: tuple[Guidance, ...]
    batch_size: int
    end: End = _USUAL_END
    given: Given | None = None
    cache: Cache | None = None
    edits: tuple[Edit, ...] = ()

    def __post_init__(self) -> None:
        check_end(self.end)
        if len(self.labels) != len(self.keys):
            raise ValueError(f"{len(self.labels)} labels need as many noise keys, got {len(self.keys)}")
        if not self.labels:
            raise ValueError("nothing to generate: give at least one label")

    def batches(self) -> list[Call]:
        """The same call, cut into calls of at most batch_size images each."""
        starts = range(0, len(self.labels), self.batch_size)
        return [self.rows(slice(start, start + self.batch_size)) for start in starts]

    def rows(self, part: slice) -> Call:
        """The call of some of the images.

        Args:
            part: Which.
        """
        sampler = self.sampler.rows(part) if isinstance(self.sampler, PosteriorSampler) else self.sampler
        return dataclasses.replace(
            self,
            labels=self.labels[part],
            keys=self.keys[part],
            sampler=sampler,
            guidance=tuple(one.rows(part) for one in self.guidance),
            given=None if self.given is None else self.given.rows(part),
        )

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
            **({} if self.end == _USUAL_END else {"end": self.end}),
            **({} if self.given is None else self.given.to_config()),
            **({} if self.cache is None else {"cache": to_spec(self.cache)}),
            **({} if not self.edits else {"edits": to_spec(self.edits)}),
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Call:
        """The call that `to_config` wrote.

        Args:
            config: Plain values, with the keys of `to_config`.
            tensors: Of `Given.tensors`, for a call that was given an image, a mask or a measurement.

        Returns:
            The call, with its sampler, grid and guidance made from the registries.

        Raises:
            ValueError: A value that is missing or of a wrong type; a name or an option that is not registered.
        """
        try:
            call = cls(
                labels=tuple(None if label is None else operator.index(label) for label in config["labels"]),
                keys=tuple((operator.index(seed), operator.index(index)) for seed, index in config["seeds"]),
                sampler=_recorded_sampler(config),
                steps=whole_number("steps", config["steps"]),
                grid=_create(GRIDS, TimeGrid, config["grid"]),
                guidance=make_guidance(config["guidance"]),
                batch_size=whole_number("batch_size", config["batch_size"]),
                end=config.get("end", _USUAL_END),
                given=Given.from_config(config, tensors or {}),
                cache=make_cache(config.get("cache")),
                edits=make_edits(config.get("edits")),
            )
        except (LookupError, TypeError) as error:
            raise ValueError(f"this record of a call is damaged: {error}") from error
        for part in (call.sampler, call.grid, *call.guidance, call.cache, *call.edits):
            _check_fields(part)
        return call


def _check_fields(part: Any) -> None:
    """ValueError for a number, a switch or a word of a recorded part that is of another type than its field's."""
    hints = typing.get_type_hints(type(part)) if dataclasses.is_dataclass(part) else {}
    for field in dataclasses.fields(part) if hints else ():
        value, hint = getattr(part, field.name), hints.get(field.name)
        kinds = kinds_of(hint)
        if not field.init or not kinds <= {int, float, bool, str, type(None)}:
            continue
        right = {float: (int, float), bool: (bool,)}
        allowed = tuple(one for kind in kinds for one in right.get(kind, (kind,)))
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in kinds):
            name = getattr(part, "registry_name", type(part).__name__)
            raise ValueError(f"this record of a call is damaged: {field.name} of {name!r} is {value!r}")


def _recorded_sampler(config: Mapping[str, Any]) -> Sampler:
    """The sampler of a record. One without an end wrote a last_step that had no effect down."""
    spec = config["sampler"]
    if isinstance(spec, Mapping) and spec.get("name") in POSTERIOR_SAMPLERS:
        return _create(POSTERIOR_SAMPLERS, Sampler, spec)
    if "end" not in config and isinstance(spec, Mapping) and spec.get("name") == "flow-sde":
        spec = {key: value for key, value in spec.items() if key != "last_step"}
    return without_idle_options(spec)[0]


def without_idle_options(spec: Any) -> tuple[Sampler, tuple[str, ...]]:
    """The sampler of a record, without options that could never act, which older versions took; and their names."""
    try:
        return make_sampler(spec), ()
    except IdleOption as error:
        if not isinstance(spec, Mapping):
            raise
        rest, names = without_idle_options({key: value for key, value in spec.items() if key not in error.names})
        return rest, (*error.names, *names)


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
    return sampler if eta is None else with_eta(sampler, eta)


def with_eta(sampler: Sampler, eta: float) -> Sampler:
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


def make_cache(spec: CacheLike | None) -> Cache | None:
    """The cache that a spec stands for: a Cache, a name with or without options, a mapping; None is none.

    Raises:
        ValueError: anything else; an option out of range.
    """
    return None if spec is None else _create(CACHES, Cache, spec)


def make_edits(spec: EditLike | Sequence[EditLike] | None) -> tuple[Edit, ...]:
    """The edits that a spec stands for: one or a sequence, each an Edit, a name or a mapping; None is none.

    Raises:
        ValueError: anything else; an option out of range.
    """
    if spec is None:
        return ()
    specs = list(spec) if isinstance(spec, Sequence) and not isinstance(spec, str) else [spec]
    return tuple(_create(EDITS, Edit, one) for one in specs)


def make_grid(spec: GridLike) -> TimeGrid:
    """The grid that a spec stands for: a TimeGrid, a name with or without options, a mapping, or times in [0, 1].

    Raises:
        ValueError: anything else; an option out of range.
    """
    if isinstance(spec, Tensor | np.ndarray | Sequence) and not isinstance(spec, str):
        return Times(tuple(times_of(spec).flatten().tolist()))
    return _create(GRIDS, TimeGrid, spec)


def _create(registry: Registry[Callable[..., Part]], kind: type[Part], spec: object) -> Part:
    """The registry's object. ValueError where it is no `kind`."""
    value = registry.create(from_spec(spec))
    if not isinstance(value, kind):
        raise ValueError(
            f"{registry.kind} must be a {kind.__name__}, a name, or a mapping with options; got {shown(value)}"
        )
    return value
