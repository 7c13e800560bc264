"""Pipeline methods that run a call: to its images, or step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dinit.compat import is_light
from dinit.devices import upload
from dinit.diffusion import Denoiser
from dinit.models.codec import Codec, IdentityCodec
from dinit.pipelines.call import Call
from dinit.pipelines.callbacks import Callback, StepCallback, step_callback
from dinit.pipelines.given import Given, repainted
from dinit.pipelines.labels import Labels
from dinit.pipelines.method import warn_of_range, with_measurement
from dinit.pipelines.outputs.sheets import OUTPUT_TYPES, OutputType, convert
from dinit.registry import suggest
from dinit.samplers import NoiseSource, Step
from dinit.samplers.guidance import apply_guidance
from dinit.samplers.points import sampling_times

if TYPE_CHECKING or not is_light():
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
else:
    from dinit.pipelines.light import DiffusionPipeline, ImagePipelineOutput

if TYPE_CHECKING:
    from dinit.pipelines.generate import Pipeline


@dataclass
class Generated(ImagePipelineOutput):
    """The result of a pipeline's call.

    Attributes:
        images: in the form of output_type: a list of PIL images, an array or a tensor.
        call: what made them, with every default filled in.
        nfe: network evaluations an image.
    """

    images: Any
    call: Call
    nfe: int


class RunningMethods(DiffusionPipeline):
    """A DiffusionPipeline that runs prepared calls."""

    if TYPE_CHECKING:
        backbone: Any

        @property
        def codec(self) -> Codec: ...

        def denoiser(self, labels: Labels = None) -> Denoiser: ...

    @torch.no_grad()
    def run(
        self, call: Call, output_type: OutputType = "pil", callback_on_step_end: Callback | None = None
    ) -> Generated:
        """Runs a call of `prepare`. Arguments as `__call__`."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output type {output_type!r}{suggest(str(output_type), list(OUTPUT_TYPES))}")
        on_step_end: StepCallback | None = step_callback(callback_on_step_end, cast("Pipeline", self))
        codec = None if output_type == "latent" else self.codec
        denoiser = self._reusing(call)
        batches = call.batches()
        steps = call.steps if call.given is None else call.given.steps(call.steps)
        if not steps:
            return self._unchanged(call, output_type)
        last: list[Step] = []
        with evaluating(self.backbone), self.progress_bar(total=len(batches) * steps) as bar:  # pyright: ignore
            for batch in batches:
                step = None
                for step in self._iterate(denoiser, batch):
                    bar.total = len(batches) * step.total  # which is less than call.steps on some grids
                    bar.update()
                    if on_step_end is not None:
                        on_step_end(step)
                assert step is not None, "a trajectory has at least one step"
                last.append(step)
            nfe = last[0].nfe
            latents = [self._kept(step.x_s, batch) for step, batch in zip(last, batches, strict=True)]
            if codec is None:
                return Generated(torch.cat(latents), call, nfe)
            images = torch.cat([codec.decode(one) for one in latents])
            if call.given is not None:
                images = repainted(images, call.given)
                warn_of_range(images, call)
        return Generated(convert(images, output_type), call, nfe)

    def _unchanged(self, call: Call, output_type: OutputType) -> Generated:
        """The result of a strength of 0: the image as it was given."""
        image = None if call.given is None else call.given.image
        assert image is not None, "a strength is that of an image"
        images = upload(image.expand(len(call.labels), -1, -1, -1), self._execution_device)
        if output_type == "latent":
            return Generated(self.codec.encode(images), call, 0)
        return Generated(convert(images, output_type), call, 0)

    def _kept(self, x: Tensor, batch: Call) -> Tensor:
        """The end of a run in pixels with what a mask keeps in its place."""
        if batch.given is None or not isinstance(self.codec, IdentityCodec):
            return x
        return repainted(x, batch.given, self.codec.encode)

    @torch.no_grad()
    def iterate(self, call: Call) -> Iterator[Step]:
        """Runs a call of `prepare` step by step, batch after batch, for a display or a loop of your own.

        The network is evaluated in `next` alone: a run that is not continued, or closed, costs nothing more, and
        several runs may take turns. Images are `codec.decode(step.x_s)` of the last step of every batch.

        Args:
            call: the call.

        Raises:
            ValueError: anything that cannot run, at the first step.
        """
        denoiser = self._reusing(call)
        for batch in call.batches():
            steps = self._iterate(denoiser, batch)
            while True:
                with evaluating(self.backbone):
                    step = next(steps, None)
                if step is None:
                    break
                yield step

    def _reusing(self, call: Call) -> Denoiser:
        """The network's denoiser with the edits and the cache of a call, below guidance."""
        denoiser = self.denoiser()
        for edit in call.edits:
            denoiser = edit.wrap(denoiser)
        return denoiser if call.cache is None else call.cache.wrap(denoiser)

    def _iterate(self, denoiser: Denoiser, batch: Call) -> Iterator[Step]:
        source = NoiseSource(batch.keys)
        size, device = self.backbone.image_size, self._execution_device
        like = torch.empty(len(batch.keys), self.backbone.in_channels, size, size, device=device)
        noise = source.normal("initial", 0, like)
        sampler, guidance, given = batch.sampler, batch.guidance, batch.given
        start: dict[str, Any] = {"steps": batch.steps, "grid": batch.grid}
        if given is not None:
            known = given.measured(self.codec, tuple(like.shape[1:]))
            sampler, guidance = with_measurement(sampler, known), [with_measurement(one, known) for one in guidance]
            if given.starts_from_image:
                start = self._noisy_image(denoiser, batch, given, noise)
        return sampler.iterate(
            apply_guidance(denoiser, guidance),
            noise,
            **start,
            labels=with_null(batch.labels, self.backbone.num_classes),
            noise_source=source,
            end=batch.end,
        )

    def _noisy_image(self, denoiser: Denoiser, batch: Call, given: Given, noise: Tensor) -> dict[str, Any]:
        """The last times of the grid, and the image with the first one's noise. SDEdit, Meng et al. 2022."""
        assert given.image is not None, "see Given.starts_from_image"
        times = sampling_times(denoiser, batch.steps, batch.grid)[-given.steps(batch.steps) :]
        k = denoiser.process.scales(times[0])
        encoded = self.codec.encode(upload(given.image, noise.device, noise.dtype))
        return {"steps": None, "grid": times, "initial_state": k.alpha * encoded + k.sigma * noise}


def with_null(labels: Sequence[int | None], num_classes: int) -> Tensor:
    return torch.tensor([num_classes if label is None else label for label in labels], dtype=torch.int64)


@contextmanager
def evaluating(backbone: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for the while: dropout would make noise that no seed controls."""
    was = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(was)
