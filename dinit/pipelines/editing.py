"""Pipeline method that edits given images from one class to another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dinit.compat import is_light
from dinit.devices import upload
from dinit.diffusion import Denoiser
from dinit.inverse.editing.base import EDITING_METHODS, EditingMethod, EditingStep
from dinit.models.codec import Codec
from dinit.pipelines.call import DEFAULT, DEFAULT_BATCH, Default, GuidanceLike, make_grid, make_guidance
from dinit.pipelines.labels import Label, Labels, make_keys, resolve_labels, whole_number
from dinit.pipelines.outputs.sheets import OUTPUT_TYPES, OutputType, convert
from dinit.pipelines.pictures import ImageLike, read_pictures
from dinit.pipelines.plain import from_spec, to_spec
from dinit.pipelines.running import evaluating
from dinit.registry import suggest
from dinit.samplers import NoiseSource, TimeGrid
from dinit.samplers.guidance import Guidance
from dinit.samplers.points import GridLike

if TYPE_CHECKING or not is_light():
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
else:
    from dinit.pipelines.light import DiffusionPipeline, ImagePipelineOutput

DEFAULT_EDITING_METHOD = "direct"
DEFAULT_EDITING_STEPS = 50

EditingMethodLike = EditingMethod | str | Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class EditCall:
    """Everything that decides the images of an edit, besides the pipeline.

    Args:
        image: (B, C, H, W) in [-1, 1].
        source: class of each image.
        target: class that each is to have.
        keys: (seed, image index), one an image.
        method: that edits.
        steps: of the sampling run, at least 2.
        grid: where they fall; None for the method's own.
        guidance: of the edited image, the last outermost.
        batch_size: images in one network evaluation at most.
    """

    image: Tensor
    source: tuple[int, ...]
    target: tuple[int, ...]
    keys: tuple[tuple[int, int], ...]
    method: EditingMethod
    steps: int
    grid: TimeGrid | None
    guidance: tuple[Guidance, ...]
    batch_size: int

    def to_config(self, tensors: dict[str, Tensor] | None = None) -> dict[str, Any]:
        """Plain values, for JSON, with a digest for the image.

        Args:
            tensors: takes the image by its digest.
        """
        return {
            "edit": to_spec(self.method),
            "image": to_spec(self.image, {} if tensors is None else tensors),
            "source": list(self.source),
            "target": list(self.target),
            "seeds": [list(key) for key in self.keys],
            "steps": self.steps,
            "grid": to_spec(self.grid),
            "guidance": to_spec(self.guidance),
            "batch_size": self.batch_size,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> EditCall:
        """The call that `to_config` wrote.

        Args:
            config: plain values.
            tensors: the image by its digest.

        Raises:
            ValueError: a value that is missing or of a wrong type.
        """
        try:
            return cls(
                image=from_spec(config["image"], tensors),
                source=tuple(map(int, config["source"])),
                target=tuple(map(int, config["target"])),
                keys=tuple((int(seed), int(index)) for seed, index in config["seeds"]),
                method=EDITING_METHODS.create(from_spec(config["edit"])),
                steps=whole_number("steps", config["steps"]),
                grid=None if config["grid"] is None else make_grid(config["grid"]),
                guidance=make_guidance(config["guidance"]),
                batch_size=whole_number("batch_size", config["batch_size"]),
            )
        except (LookupError, TypeError) as error:
            raise ValueError(f"this record of an edit is damaged: {error}") from error


@dataclass
class EditedImages(ImagePipelineOutput):
    """The result of `Pipeline.edit`.

    Attributes:
        images: the edited images, in the form of output_type: a list of PIL images, an array or a tensor.
        reconstructions: the given images as the method makes them again of the source class, in the same form.
            Where they differ from those given, the edit loses what it should keep.
        call: what made them, with every default filled in.
        nfe: network evaluations an image.
    """

    images: Any
    reconstructions: Any
    call: EditCall
    nfe: int


class EditingCalls(DiffusionPipeline):
    """A DiffusionPipeline that edits given images."""

    if TYPE_CHECKING:
        backbone: Any

        @property
        def codec(self) -> Codec: ...

        @property
        def num_classes(self) -> int: ...

        @property
        def class_names(self) -> list[str] | None: ...

        def denoiser(self, labels: Labels = None) -> Denoiser: ...

    def edit(
        self,
        image: ImageLike,
        *,
        source: Label | Sequence[Label],
        target: Label | Sequence[Label],
        method: EditingMethodLike = DEFAULT_EDITING_METHOD,
        steps: int = DEFAULT_EDITING_STEPS,
        grid: GridLike | None = None,
        guidance: GuidanceLike | Sequence[GuidanceLike] | Default | None = DEFAULT,
        seed: int | Sequence[int] = 0,
        batch_size: int = DEFAULT_BATCH,
        output_type: OutputType = "pil",
        callback_on_step_end: Callable[[EditingStep], object] | None = None,
    ) -> EditedImages:
        """The given images as images of another class, with the rest of them kept.

        Args:
            image: one, or several, as `__call__` takes them.
            source: class number or name of every image, or one for all.
            target: the class that it is to have, as source.
            method: an editing method, a name with or without options ("sdedit:strength=0.5"), or a mapping;
                `dinit list editing-methods` has them.
            steps: of the sampling run, at least 2. The evaluations that a method needs for each are its own.
            grid: where the steps fall; None is the method's own.
            guidance: of the edited image, as `__call__` takes it; inversions follow the conditional model.
            seed: of the noise of methods that draw any, one or one an image.
            batch_size: images that the network evaluates at once.
            output_type: as of `__call__`.
            callback_on_step_end: called after every step of every batch, with its `EditingStep`.

        Raises:
            ValueError: anything that cannot run, before the first evaluation of the network.
        """
        call = self.prepare_edit(
            image,
            source=source,
            target=target,
            method=method,
            steps=steps,
            grid=grid,
            guidance=guidance,
            seed=seed,
            batch_size=batch_size,
        )
        return self.run_edit(call, output_type, callback_on_step_end)

    def prepare_edit(
        self,
        image: ImageLike,
        *,
        source: Label | Sequence[Label],
        target: Label | Sequence[Label],
        method: EditingMethodLike = DEFAULT_EDITING_METHOD,
        steps: int = DEFAULT_EDITING_STEPS,
        grid: GridLike | None = None,
        guidance: GuidanceLike | Sequence[GuidanceLike] | Default | None = DEFAULT,
        seed: int | Sequence[int] = 0,
        batch_size: int = DEFAULT_BATCH,
    ) -> EditCall:
        """The validated `EditCall` that `edit` would run. Arguments and errors as `edit`."""
        made = EDITING_METHODS.create(from_spec(method))
        if not isinstance(made, EditingMethod):
            raise ValueError(f"method must be an editing method, a name or a mapping, got {method!r}")
        side, channels = self.backbone.image_size * self.codec.downscale, self.codec.image_channels
        pictures = read_pictures(image, side, side, channels)
        count = len(pictures)
        return EditCall(
            pictures,
            self._classes("source", source, count),
            self._classes("target", target, count),
            make_keys(seed, count, 0),
            made,
            whole_number("steps", steps),
            None if grid is None else make_grid(grid),
            cast(Any, self).guidance if guidance is DEFAULT else make_guidance(guidance),
            whole_number("batch_size", batch_size),
        )

    @torch.no_grad()
    def run_edit(
        self,
        call: EditCall,
        output_type: OutputType = "pil",
        callback_on_step_end: Callable[[EditingStep], object] | None = None,
    ) -> EditedImages:
        """Runs a call of `prepare_edit`. Arguments as `edit`."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output type {output_type!r}{suggest(str(output_type), list(OUTPUT_TYPES))}")
        x = self.codec.encode(upload(call.image, self._execution_device, self.backbone.dtype))
        found: list[tuple[Tensor, Tensor]] = []
        nfe = 0
        with evaluating(self.backbone):
            for start in range(0, len(x), call.batch_size):
                part = slice(start, start + call.batch_size)
                edited = call.method.edit(
                    self.denoiser(),
                    x[part],
                    call.source[part],
                    call.target[part],
                    call.steps,
                    grid=call.grid,
                    guidance=call.guidance,
                    noise_source=NoiseSource(call.keys[part]),
                    on_step=callback_on_step_end,
                )
                found.append((edited.x, edited.reconstruction))
                nfe = edited.nfe
        images, reconstructions = (torch.cat(one) for one in zip(*found, strict=True))
        if output_type != "latent":
            images, reconstructions = self.codec.decode(images), self.codec.decode(reconstructions)
        return EditedImages(_shown(images, output_type), _shown(reconstructions, output_type), call, nfe)

    def _classes(self, name: str, given: Any, count: int) -> tuple[int, ...]:
        """Class numbers of `count` images."""
        several = isinstance(given, Sequence) and not isinstance(given, str)
        found = resolve_labels(given, None if several else count, self.num_classes, self.class_names)
        if len(found) != count or None in found:
            raise ValueError(f"{name} needs one class for all images, or one for each of {count}; got {given!r}")
        return tuple(label for label in found if label is not None)


def _shown(images: Tensor, output_type: OutputType) -> Any:
    return images if output_type == "latent" else convert(images, output_type)
