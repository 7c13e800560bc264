"""Pipeline method that edits given images from one class to another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dinit.compat import is_light
from dinit.devices import upload
from dinit.diffusion import Denoiser
from dinit.inverse.editing.base import EDITING_METHODS, EditingMethod
from dinit.models.codec import Codec
from dinit.pipelines.call import DEFAULT, DEFAULT_BATCH, Default, GuidanceLike, make_grid, make_guidance
from dinit.pipelines.labels import Label, Labels, make_keys, resolve_labels, whole_number
from dinit.pipelines.outputs.sheets import OUTPUT_TYPES, OutputType, convert
from dinit.pipelines.pictures import ImageLike, read_pictures
from dinit.pipelines.plain import from_spec
from dinit.pipelines.running import evaluating
from dinit.registry import suggest
from dinit.samplers import NoiseSource
from dinit.samplers.guidance import Guidance
from dinit.samplers.points import GridLike

if TYPE_CHECKING or not is_light():
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
else:
    from dinit.pipelines.light import DiffusionPipeline, ImagePipelineOutput

DEFAULT_EDITING_METHOD = "direct"
DEFAULT_EDITING_STEPS = 50

EditingMethodLike = EditingMethod | str | Mapping[str, Any]


@dataclass
class EditedImages(ImagePipelineOutput):
    """The result of `Pipeline.edit`.

    Attributes:
        images: the edited images, in the form of output_type: a list of PIL images, an array or a tensor.
        reconstructions: the given images as the method makes them again of the source class, in the same form.
            Where they differ from those given, the edit loses what it should keep.
        method: that made them.
        nfe: network evaluations an image.
    """

    images: Any
    reconstructions: Any
    method: EditingMethod
    nfe: int


class EditingCalls(DiffusionPipeline):
    """A DiffusionPipeline that edits given images."""

    if TYPE_CHECKING:
        backbone: Any
        guidance: tuple[Guidance, ...]

        @property
        def codec(self) -> Codec: ...

        @property
        def num_classes(self) -> int: ...

        @property
        def class_names(self) -> list[str] | None: ...

        def denoiser(self, labels: Labels = None) -> Denoiser: ...

    @torch.no_grad()
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

        Raises:
            ValueError: anything that cannot run, before the first evaluation of the network.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output type {output_type!r}{suggest(str(output_type), list(OUTPUT_TYPES))}")
        made = EDITING_METHODS.create(from_spec(method))
        if not isinstance(made, EditingMethod):
            raise ValueError(f"method must be an editing method, a name or a mapping, got {method!r}")
        side, channels = self.backbone.image_size * self.codec.downscale, self.codec.image_channels
        pictures = read_pictures(image, side, side, channels)
        count, batch_size = len(pictures), whole_number("batch_size", batch_size)
        classes = self._classes("source", source, count), self._classes("target", target, count)
        keys = make_keys(seed, count, 0)
        guided = self.guidance if guidance is DEFAULT else make_guidance(guidance)
        placed = None if grid is None else make_grid(grid)
        x = self.codec.encode(upload(pictures, self._execution_device))
        found: list[tuple[Tensor, Tensor]] = []
        nfe = 0
        with evaluating(self.backbone):
            for start in range(0, count, batch_size):
                part = slice(start, start + batch_size)
                edited = made.edit(
                    self.denoiser(),
                    x[part],
                    classes[0][part],
                    classes[1][part],
                    whole_number("steps", steps),
                    grid=placed,
                    guidance=guided,
                    noise_source=NoiseSource(keys[part]),
                )
                found.append((edited.x, edited.reconstruction))
                nfe = edited.nfe
        images, reconstructions = (torch.cat(one) for one in zip(*found, strict=True))
        if output_type != "latent":
            images, reconstructions = self.codec.decode(images), self.codec.decode(reconstructions)
        return EditedImages(_shown(images, output_type), _shown(reconstructions, output_type), made, nfe)

    def _classes(self, name: str, given: Any, count: int) -> list[int]:
        """Class numbers of `count` images."""
        several = isinstance(given, Sequence) and not isinstance(given, str)
        found = resolve_labels(given, None if several else count, self.num_classes, self.class_names)
        if len(found) != count or None in found:
            raise ValueError(f"{name} needs one class for all images, or one for each of {count}; got {given!r}")
        return [label for label in found if label is not None]


def _shown(images: Tensor, output_type: OutputType) -> Any:
    return images if output_type == "latent" else convert(images, output_type)
