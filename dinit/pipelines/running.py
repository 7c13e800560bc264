"""Pipeline methods that run a call: to its images, or step by step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from dinit.compat import is_light
from dinit.diffusion import Denoiser
from dinit.models.codec import Codec
from dinit.pipelines.call import Call
from dinit.pipelines.callbacks import Callback, StepCallback, step_callback
from dinit.pipelines.labels import Labels
from dinit.pipelines.outputs.sheets import OUTPUT_TYPES, OutputType, convert
from dinit.registry import suggest
from dinit.samplers import NoiseSource, Step
from dinit.samplers.guidance import apply_guidance

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
        denoiser = apply_guidance(self.denoiser(), call.guidance)
        batches = call.batches()
        last: list[Step] = []
        with _evaluating(self.backbone), self.progress_bar(total=len(batches) * call.steps) as bar:  # pyright: ignore
            for batch in batches:
                step = None
                for step in self._iterate(denoiser, batch):
                    bar.total = len(batches) * step.total  # which is less than call.steps on some grids
                    bar.update()
                    if on_step_end is not None:
                        on_step_end(step)
                assert step is not None, "a trajectory has at least one step"
                last.append(step)
            if codec is None:
                return Generated(torch.cat([step.x_s for step in last]), call, last[0].nfe)
            images = torch.cat([codec.decode(step.x_s) for step in last])
        return Generated(convert(images, output_type), call, last[0].nfe)

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
        denoiser = apply_guidance(self.denoiser(), call.guidance)
        for batch in call.batches():
            steps = self._iterate(denoiser, batch)
            while True:
                with _evaluating(self.backbone):
                    step = next(steps, None)
                if step is None:
                    break
                yield step

    def _iterate(self, denoiser: Denoiser, batch: Call) -> Iterator[Step]:
        source = NoiseSource(batch.keys)
        size, device = self.backbone.image_size, self._execution_device
        like = torch.empty(len(batch.keys), self.backbone.in_channels, size, size, device=device)
        noise = source.normal("initial", 0, like)
        labels = with_null(batch.labels, self.backbone.num_classes)
        return batch.sampler.iterate(
            denoiser,
            noise,
            batch.steps,
            grid=batch.grid,
            labels=labels,
            noise_source=source,
            end=batch.end,
        )


def with_null(labels: Sequence[int | None], num_classes: int) -> Tensor:
    return torch.tensor([num_classes if label is None else label for label in labels], dtype=torch.int64)


@contextmanager
def _evaluating(backbone: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for the while: dropout would make noise that no seed controls."""
    was = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(was)
