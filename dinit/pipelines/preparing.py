"""Pipeline methods that prepare a call: every default filled in, everything that cannot run refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, Unpack, cast

from torch import Tensor

from dinit.arguments import shown
from dinit.checkpoints.interop.scheduler_sampler import SchedulerSampler
from dinit.diffusion import Denoiser, Process
from dinit.inverse.guidance.base import PosteriorGuidance
from dinit.inverse.measurement import Measurement
from dinit.inverse.samplers.base import PosteriorSampler
from dinit.models.codec import Codec, IdentityCodec
from dinit.pipelines.advice import CALL, unknown_keywords
from dinit.pipelines.call import (
    DEFAULT,
    DEFAULT_BATCH,
    Call,
    CallOptions,
    guidance_at_scale,
    make_cache,
    make_edits,
    make_grid,
    make_guidance,
    make_sampler,
    with_eta,
)
from dinit.pipelines.given import Given
from dinit.pipelines.labels import Labels, make_keys, resolve_labels, whole_number
from dinit.pipelines.method import (
    DEFAULT_METHOD,
    DEFAULT_NONLINEAR,
    Method,
    around,
    make_method,
    nonlinear_methods,
    with_solver,
)
from dinit.pipelines.pictures import read_mask, read_pictures
from dinit.samplers import Sampler, Step
from dinit.samplers.guidance import Guidance
from dinit.samplers.guidance.clip import ClipX0
from dinit.samplers.guidance.threshold import DynamicThreshold
from dinit.samplers.points import End

STRENGTH = 0.8  # of an image without a mask, as in diffusers


class PreparingMethods:
    """Methods of a `Pipeline` from the arguments of its call to a `Call`."""

    _defaults: dict[str, Any]

    if TYPE_CHECKING:
        backbone: Any
        end: Any
        guidance: Any

        @property
        def process(self) -> Process: ...

        @property
        def codec(self) -> Codec: ...

        @property
        def num_classes(self) -> int: ...

        @property
        def class_names(self) -> list[str] | None: ...

        def denoiser(self, labels: Labels = None) -> Denoiser: ...

        def _iterate(self, denoiser: Denoiser, batch: Call) -> Iterator[Step]: ...

        def _reusing(self, call: Call) -> Denoiser: ...

    def prepare(self, labels: Labels = None, **options: Unpack[CallOptions]) -> Call:
        """The validated `Call` that `__call__` would run, with every default filled in.

        Args:
            labels: as `__call__` takes them.
            options: as `__call__` takes them, but for output_type, callback_on_step_end and return_dict.

        Raises:
            ValueError: anything that cannot run, as far as it shows without a network.
        """
        if unknown := [name for name in options if name not in CallOptions.__annotations__]:
            raise unknown_keywords("a pipeline's call", unknown, ("labels", *CallOptions.__annotations__), CALL)
        given = cast(dict[str, Any], options)
        labels = _either("labels", labels, "class_labels", given.get("class_labels"))
        steps = _either("steps", given.get("steps"), "num_inference_steps", given.get("num_inference_steps"))
        count, batch_size = given.get("num_images"), given.get("batch_size")
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size)
        restored, method = self._given(given)
        if count is None and restored is not None and (labels is None or _is_one(labels)):
            count = restored.count
        if labels is None and count is None:
            count = batch_size  # as in DDPMPipeline and DDIMPipeline
        resolved = resolve_labels(labels, count, self.num_classes, self.class_names)
        if restored is not None:
            restored.check(len(resolved), self.decoded_shape)
        sampler = self._sampler(given.get("sampler"), given.get("eta"), method)
        placed = given.get("grid")
        if placed is None:
            placed = sampler.own_grid or self._defaults.get("grid")
        if steps is None:
            grid = make_grid(sampler.grid_for(self.process) if placed is None else placed)
            steps = grid.length or self._defaults.get("steps")
        if steps is None:
            raise ValueError("give the number of steps; this pipeline has no default")
        steps = whole_number("steps", steps)
        end = self._end(sampler, given.get("end"))
        evaluations = steps - (end == "state")
        if placed is None:
            placed = sampler.grid_for_run(self.process, evaluations)
        sampler = sampler.chosen(evaluations)
        guidance = self._guidance(sampler, given.get("guidance", DEFAULT), given.get("guidance_scale"))
        if restored is not None:
            restored.steps(steps)  # which refuses a strength of less than one of them
            guidance = self._with_method(restored, method, sampler, guidance)
        return Call(
            labels=resolved,
            keys=make_keys(
                given.get("seed", 0), len(resolved), given.get("start_index", 0), given.get("generator")
            ),
            sampler=sampler,
            steps=steps,
            grid=make_grid(placed),
            guidance=guidance,
            batch_size=DEFAULT_BATCH if batch_size is None else batch_size,
            end=end,
            given=restored,
            cache=make_cache(given.get("cache")),
            edits=make_edits(given.get("edits")),
        )

    def _end(self, sampler: Sampler, given: Any) -> End:
        end = self.end if given is None else given
        return sampler.end_for(self.process) if end is None else end

    def check(self, call: Call) -> None:
        """ValueError where the call cannot run on this pipeline; the network is not evaluated."""
        self._iterate(self._reusing(call), call.rows(slice(0, 1)))  # an iterator that is not begun

    def _guidance(self, sampler: Sampler, spec: Any, scale: float | None) -> tuple[Guidance, ...]:
        default = self.guidance
        if isinstance(sampler, SchedulerSampler) and sampler.clips:  # by its config, as diffusers does
            default = tuple(one for one in default if not isinstance(one, ClipX0 | DynamicThreshold))
        if scale is None:
            return default if spec is DEFAULT else make_guidance(spec)
        if spec is not DEFAULT:
            raise ValueError("guidance and guidance_scale both set the guidance; give one of them")
        return guidance_at_scale(default, scale)

    @property
    def decoded_shape(self) -> tuple[int, int, int]:
        """Shape of one image, (C, H, W). ValueError where an autoencoder is needed and not there."""
        side = self.backbone.image_size * self.codec.downscale
        return (self.codec.image_channels, side, side)

    def _given(self, options: Mapping[str, Any]) -> tuple[Given | None, Method | None]:
        """What a call is given besides labels, and the method that was named."""
        image, mask, strength = (options.get(key) for key in ("image", "mask", "strength"))
        measurement, spec = options.get("measurement"), options.get("method")
        method = None if spec is None else make_method(spec)
        if method is not None and method.measurement is not None:
            if measurement is not None:
                raise ValueError("method and measurement= both hold a measurement; give one of them")
            method, measurement = replace(method, measurement=None), method.measurement
        if measurement is not None and not isinstance(measurement, Measurement):
            raise ValueError(f"measurement must be a dinit.inverse.Measurement, got {shown(measurement)}")
        if image is None and (strength is not None or mask is not None):
            name = "mask" if strength is None else "strength"
            raise ValueError(f"{name}= is about an image: give image= too")
        if method is not None and measurement is None and mask is None:
            raise ValueError("method= uses a measurement: give measurement=, or image= and mask=")
        if image is None and measurement is None:
            return None, None
        if isinstance(strength, bool) or not isinstance(strength, Real | None):
            raise ValueError(f"strength must be a number in [0, 1], got {shown(strength)}")
        if strength is None:
            strength = STRENGTH if image is not None and mask is None else 1.0
        channels, height, width = self.decoded_shape
        return Given(
            None if image is None else read_pictures(image, height, width, channels),
            float(strength),
            None if mask is None else read_mask(mask, image, height),
            measurement,
        ), method

    def _sampler(self, spec: Any, eta: float | None, method: Method | None) -> Sampler:
        if isinstance(method, PosteriorSampler):
            sampler = method if spec is None else with_solver(method, make_sampler(spec))
            return sampler if eta is None else with_eta(sampler, eta)
        if spec is None and "sampler" not in self._defaults:
            raise ValueError("give a sampler; this pipeline has no default")
        return make_sampler(self._defaults["sampler"] if spec is None else spec, eta)

    def _with_method(
        self, given: Given, method: Method | None, sampler: Sampler, guidance: tuple[Guidance, ...]
    ) -> tuple[Guidance, ...]:
        """The guidance with the method in it, where it is a guidance. ValueError for one that does not fit."""
        if given.mask is None and given.measurement is None:
            return guidance
        in_pixels = isinstance(self.codec, IdentityCodec)
        linear = in_pixels and (given.measurement is None or given.measurement.a.linear)
        using = [one for one in (sampler, *guidance) if isinstance(one, PosteriorGuidance | PosteriorSampler)]
        if method is None and not using:
            method = make_method(DEFAULT_METHOD if linear else DEFAULT_NONLINEAR)
        if isinstance(method, PosteriorGuidance):
            guidance = around(method, guidance)
            using.append(method)
        if len(using) > 1:
            names = " and ".join(getattr(one, "registry_name", type(one).__name__) for one in using)
            raise ValueError(f"{names} both use the measurement: give one, as method= or in guidance=")
        for one in using:
            if one.linear_only and not linear:
                why = "this operator is not" if in_pixels else "no operator is linear on latents"
                name = getattr(one, "registry_name", type(one).__name__)
                raise ValueError(
                    f"method {name!r} needs a linear operator, and {why}: use {' or '.join(nonlinear_methods())}"
                )
        return guidance


def _is_one(labels: Labels) -> bool:
    """Whether this is one label for all images."""
    several = isinstance(labels, Sequence) and not isinstance(labels, str | bytes)
    return not several and not (isinstance(labels, Tensor) and labels.ndim > 0)


def _either(name: str, value: Any, other: str, given: Any) -> Any:
    """The one of two spellings of an argument that is given. ValueError where both are."""
    if value is not None and given is not None:
        raise ValueError(f"{name} and {other} are the same; give one of them")
    return given if value is None else value
