"""Dry run of a call: what it would make, its evaluations, and its memory, without an evaluation of the network.

The call's sampler and guidance run on the meta device. In place of the network stands a record of the tensors that
it makes and frees: of one evaluation with tensors that have a device and a shape but no numbers (torch's
FakeTensorMode), so that the record is that of the kernels which the device would run. The decoder likewise.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinit.diffusion import BackboneDenoiser, Denoiser
from dinit.memory import available, in_units, resident
from dinit.models.codec import Codec, IdentityCodec
from dinit.pipelines.call import Call
from dinit.pipelines.callbacks import Trajectory
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.method import with_measurement
from dinit.pipelines.outputs.files import caption, sheet_layout
from dinit.pipelines.outputs.memory_trace import Fakes, Trace, size_of, tensors_of, touch
from dinit.pipelines.running import with_null
from dinit.samplers import Sampler
from dinit.samplers.guidance import Guidance, apply_guidance
from dinit.samplers.points import sampling_times

_META = torch.device("meta")
_TRACED = 3  # batches that are traced; what one leaves behind is counted for each of the others


@dataclass(frozen=True)
class Wanted:
    """What a call's images become: pictures that the decoder makes, a contact sheet, an animation, latents."""

    pictures: bool = True
    sheet: bool = False
    animation: bool = False
    latents: bool = False


@dataclass(frozen=True)
class DryRun:
    """What a call would do.

    Attributes:
        images: how many.
        classes: how many different ones; 0 where no image has a class.
        batches: of images that the network evaluates together.
        steps: sampling steps.
        nfe: network evaluations per image; of an adaptive sampler the fewest.
        settings: the call in one line.
        adaptive: whether the number of evaluations depends on the images.
        weights: bytes of the networks.
        activations: the most that one evaluation of the network takes at one time, in bytes.
        decoder: the same of decoding one batch; 0 where nothing is decoded.
        samples: the most that states, noise and images take at one time.
        working: the most that all of these, but for the weights, take of the allocator at one time.
        opening: the most that opening the pipeline took, weights included; 0 where it is not known.
        note: why there is no estimate, where there is none.
        available: free bytes of the device before the weights were there; None where they are not known.
        program: bytes of the process without the weights; None where they are not known.
        files: what would be written.
    """

    images: int
    classes: int
    batches: int
    steps: int
    nfe: int
    settings: str
    adaptive: bool
    weights: int
    activations: int
    decoder: int
    samples: int
    working: int
    opening: int = 0
    note: str = ""
    available: int | None = None
    program: int | None = None
    files: tuple[str, ...] = ()

    @property
    def total(self) -> int:
        """Peak of the run, besides the program itself."""
        return max(self.weights + self.working, self.opening)

    @property
    def fits(self) -> bool:
        """False where the device has less memory than that."""
        return self.available is None or self.total <= self.available

    def lines(self) -> Iterator[str]:
        """The result as text."""
        of = f" of {self.classes} class{'es' * (self.classes != 1)}" if self.classes else ""
        yield f"{self.images:,} image{'s' * (self.images != 1)}{of}: {self.settings}"
        least = "at least " if self.adaptive else ""
        yield (
            f"{self.steps:,} steps, {least}{self.nfe:,} NFE each, in {self.batches:,} "
            f"batch{'es' * (self.batches != 1)}"
        )
        if self.note:
            yield self.note
        else:
            parts = {"weights": self.weights, "activations": self.activations, "samples": self.samples}
            parts |= {"decoder": self.decoder} if self.decoder else {}
            listed = ", ".join(f"{name} {in_units(value)}" for name, value in parts.items())
            where = " while the pipeline is opened" if self.opening > self.weights + self.working else ""
            yield f"memory: about {in_units(self.total)} at the peak{where} ({listed})"
        if self.program is not None:
            yield f"memory of the program itself: {in_units(self.program)}"
        if self.available is not None:
            yield f"available: {in_units(self.available)}"
        yield f"files: {', '.join(self.files)}" if self.files else "files: none"
        if not self.fits:
            yield "this will not fit: see memory above; a smaller --batch-size needs less"


def dry_run(
    pipe: Pipeline,
    call: Call,
    wanted: Wanted | None = None,
    *,
    device: str | torch.device | None = None,
    files: Sequence[str] = (),
    opened: bool = False,
) -> DryRun:
    """What a call of `Pipeline.prepare` would take. The network is not evaluated, and nothing is written.

    Args:
        pipe: the pipeline.
        call: of `pipe.prepare`.
        wanted: what becomes of the images; None is pictures.
        device: where it would run; None is the pipeline's device.
        files: names for the result.
        opened: whether this process has done nothing but open the pipeline, so that its peak is that of opening.

    Raises:
        ValueError: several processes were launched; a call that cannot run on this pipeline; pictures of a pipeline
            without its autoencoder.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a dry run takes one process; launch it without accelerate or torchrun")
    wanted = Wanted() if wanted is None else wanted
    pipe.check(call)
    codec = pipe.codec if wanted.pictures else None
    networks = [one for one in (pipe.backbone, pipe.vae) if one is not None]
    weights = sum(size_of(tensor) for one in networks for tensor in tensors_of(one))
    place = torch.device(pipe.device if device is None else device)
    most = resident(peak=True)
    for one in networks:
        touch(one)
    now = resident()
    trace = Trace()
    adaptive, batches = call.sampler.claims().cost_depends_on == "state", call.batches()
    steps = call.steps if call.given is None else call.given.steps(call.steps)
    nfe, note = call.sampler.nfe(steps) if steps else 0, ""
    try:
        if steps:
            nfe = _run(pipe, call, codec, wanted, trace, adaptive) or nfe
    except (RuntimeError, NotImplementedError, TypeError) as error:
        note = f"memory was not estimated: {str(error).splitlines()[0]}"
    working = 0 if note else trace.measured(place)
    on_host = place.type == "cpu"
    free = _free(place)
    return DryRun(
        images=len(call.labels),
        classes=len({label for label in call.labels if label is not None}),
        batches=len(batches),
        steps=steps,
        nfe=nfe,
        settings=caption(pipe, call),
        adaptive=adaptive,
        weights=weights,
        activations=trace.inner.get("network", 0),
        decoder=trace.inner.get("decoder", 0),
        samples=trace.outer,
        working=working,
        opening=max(weights + most - now, 0) if opened and on_host and most is not None and now is not None else 0,
        note=note,
        available=free if free is None or not on_host else free + weights,
        program=None if now is None else max(now - weights, 0),
        files=tuple(files),
    )


def _free(device: torch.device) -> int | None:
    """Free bytes of a device; None where they are not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available() if device.type == "cpu" else None


def _run(
    pipe: Pipeline, call: Call, codec: Codec | None, wanted: Wanted, trace: Trace, adaptive: bool
) -> int | None:
    """Traces what `Pipeline.run` and the writing of files do. Returns the NFE; None where they are not known."""
    network: Any = _Network(pipe.backbone, trace)
    decode = None if codec is None else _decoder(codec, trace)
    predictor = BackboneDenoiser(network, pipe.process, pipe.parameterization, pipe.t_max)
    batches, keep, nfe = call.batches(), Trajectory() if wanted.animation else None, None
    last: list[Any] = []
    step: Any = None
    with torch.no_grad(), trace:
        for batch in batches[:_TRACED]:
            before = trace.now
            like = torch.empty(len(batch.labels), network.in_channels, *2 * (network.image_size,), device=_META)
            labels = with_null(batch.labels, network.num_classes)
            sampler, guidance, start = _given(pipe, predictor, batch, like)
            try:
                for step in sampler.iterate(
                    apply_guidance(predictor, guidance),
                    torch.empty_like(like),
                    **start,
                    labels=labels,
                    noise_source=_NoNumbers(),
                    end=batch.end,
                ):
                    if keep is not None:
                        keep(step)
                    if step.index + 1 == step.total:
                        last.append(step)
                        nfe = step.nfe
            except (RuntimeError, NotImplementedError) as error:
                if not adaptive or isinstance(error, _Differentiated):
                    raise
                last.append(like)  # the errors of a trial step, by then all of its evaluations are made
        rest = trace.take((len(batches) - len(last)) * max(trace.now - before, 0))
        states = [one.x_s if hasattr(one, "x_s") else one for one in last]
        images = [state if decode is None or wanted.latents else decode(state) for state in states]
        held = trace.take(sum(map(size_of, images)) * max(len(batches) / len(images) - 1, 0))
        whole = trace.take(len(call.labels) * size_of(images[0]) / len(images[0]))  # all batches in one
        states, images, step = [], [], None
        last.clear()
        trace.drop(rest, held)
        if wanted.latents:
            trace.drop(trace.take(len(call.labels) * size_of(like) / len(like)))  # the file
            if decode is not None:
                trace.take(len(call.labels) * size_of(decode(like)) / len(like))
        if wanted.pictures:
            _pictures(pipe, call, wanted, trace)
        if keep is not None and decode is not None:
            frames = [decode(frame) for frame in keep.frames]
            trace.take(sum(map(size_of, frames)) * (len(batches) / min(len(batches), _TRACED) - 1))
    trace.drop(whole)
    return nfe


def _given(
    pipe: Pipeline, denoiser: Denoiser, batch: Call, like: Tensor
) -> tuple[Sampler, tuple[Guidance, ...], dict[str, Any]]:
    """Sampler, guidance and start of a batch with what it was given, as `Pipeline.run` has them."""
    start: dict[str, Any] = {"steps": batch.steps, "grid": batch.grid}
    if batch.given is None:
        return batch.sampler, batch.guidance, start
    seen = batch.given.measured(pipe.codec, tuple(like.shape[1:]))
    if batch.given.starts_from_image:
        times = sampling_times(denoiser, batch.steps, batch.grid)[-batch.given.steps(batch.steps) :]
        start = {"steps": None, "grid": times, "initial_state": torch.empty_like(like)}
    return with_measurement(batch.sampler, seen), tuple(with_measurement(g, seen) for g in batch.guidance), start


def _pictures(pipe: Pipeline, call: Call, wanted: Wanted, trace: Trace) -> None:
    """Pixels as bytes with their temporaries, pictures of Pillow, and a contact sheet with its tiles."""
    side, channels = pipe.image_size, pipe.codec.image_channels
    values = len(call.labels) * channels * side * side
    trace.drop(trace.take(4 * values), trace.take(4 * values))
    per_pixel = 1 if channels == 1 else 4
    pictures = trace.take(values // channels * per_pixel)
    if wanted.sheet:
        layout = sheet_layout(pipe, call, side)
        tiles = trace.take(values // channels * per_pixel * layout.scale**2)
        trace.drop(trace.take(layout.size[0] * layout.size[1] * per_pixel), tiles)
    trace.drop(pictures)


class _NoNumbers:
    """A noise source whose draws have a shape alone."""

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        return torch.empty_like(like)


class _Differentiated(NotImplementedError):
    """Gradients of the network, whose memory has no record."""


class _Network(nn.Module):
    """Stands for a backbone on the meta device: every evaluation is the record of one of its shape."""

    def __init__(self, backbone: Any, trace: Trace) -> None:
        super().__init__()
        self.fakes, self.trace = Fakes(backbone), trace
        self.num_classes, self.in_channels, self.out_channels = (
            backbone.num_classes,
            backbone.in_channels,
            backbone.out_channels,
        )
        self.null_class, self.image_size = getattr(backbone, "null_class", True), backbone.image_size
        self.dtype = backbone.dtype

    def embed(self, labels: Tensor) -> Tensor:
        return self.trace.call("network", self.fakes, "embed", labels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            raise _Differentiated("the call takes gradients of the network, whose memory is not traced")
        return self.trace.call("network", self.fakes, "__call__", x, noise_label, cond)


def _decoder(codec: Codec, trace: Trace) -> Callable[[Tensor], Tensor]:
    if isinstance(codec, IdentityCodec):
        return codec.decode
    fakes = Fakes(codec)
    return lambda x: trace.call("decoder", fakes, "decode", x)
