"""The generating pipeline: a diffusers DiffusionPipeline of a backbone, its process and its parameterization."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor

from dinit.diffusion import (
    PARAMETERIZATIONS,
    PROCESSES,
    BackboneDenoiser,
    Denoiser,
    Parameterization,
    Process,
)
from dinit.models.base import BACKBONES
from dinit.models.codec import AutoencoderKLCodec, Codec, IdentityCodec, align
from dinit.pipelines.call import (
    DEFAULT_BATCH,
    DEFAULT_KEYS,
    Call,
    Label,
    make_grid,
    make_guidance,
    make_keys,
    make_sampler,
    resolve_labels,
    to_spec,
    whole_number,
)
from dinit.pipelines.diffusers_folder import is_diffusers_folder, read_diffusers_folder
from dinit.pipelines.loading import check_folder, locate
from dinit.pipelines.outputs.sheets import OUTPUT_TYPES, OutputType, convert
from dinit.registry import suggest
from dinit.samplers import NoiseSource, Step
from dinit.samplers.base import plan
from dinit.samplers.guidance import apply_guidance

# What from_pretrained hands to the download of a hub repository, and not to diffusers' loading.
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


@dataclass
class Generated(ImagePipelineOutput):
    """images: as asked for by output_type. call: what made them. nfe: network evaluations an image."""

    images: Any
    call: Call
    nfe: int


class Pipeline(DiffusionPipeline):
    """Generates images: any sampler, any guidance, on one trained network.

    backbone: a dinit Backbone. process, parameterization: what it was trained on, as objects or as mappings
    {"name": ..., **options}. vae: an AutoencoderKL where the backbone works on latents. class_names: one a
    class. t_max: below 1 where the parameterization is singular at pure noise. defaults: sampler, steps, grid
    and guidance of a call that names none; each as `__call__` takes it. vae_reference: where to find the
    autoencoder of a backbone on latents that comes without its vae; images then cannot be decoded. pixel_range:
    of the images that a backbone on pixels was trained on, where it is not [-1, 1] (score_sde's VE has [0, 1]).
    latent_normalization: {"mean": [C], "std": [C]} of the latents that the backbone was trained on, in place of the
    autoencoder's own scale and shift, whichever autoencoder is given; see AutoencoderKLCodec.
    compile: run the backbone through torch.compile, once for all steps; a mapping has its options. Not saved.

    Saved, it is a diffusers folder: model_index.json with all of the plain values, backbone/, and vae/ where
    there is one. ValueError for a singular pair, a codec that does not fit, or defaults that no registry knows.
    """

    model_cpu_offload_seq = "backbone->vae"
    _optional_components = ["vae"]  # noqa: RUF012 (diffusers' own spelling)

    def __init__(  # diffusers takes arguments without a default for components, so two have None
        self,
        backbone: Any,
        process: Any = None,
        parameterization: Any = None,
        vae: Any = None,
        class_names: Any = None,
        t_max: float = 1.0,
        defaults: Any = None,
        vae_reference: str | None = None,
        pixel_range: Any = (-1.0, 1.0),
        latent_normalization: Any = None,
        compile: Any = False,
    ) -> None:
        super().__init__()
        if process is None or parameterization is None:
            raise ValueError("a pipeline needs process= and parameterization=, e.g. {'name': 'vp-discrete'}")
        self._process: Process = PROCESSES.create(process)
        self._parameterization: Parameterization = PARAMETERIZATIONS.create(parameterization)
        self._defaults = _check_defaults(defaults or {})
        if class_names is not None and len(class_names) != backbone.num_classes:
            raise ValueError(f"{len(class_names)} class names for a backbone of {backbone.num_classes} classes")
        BackboneDenoiser(backbone, self._process, self._parameterization, t_max)  # refuses a singular pair
        self.register_modules(backbone=backbone, vae=vae)
        self.register_to_config(
            process=self._process.to_config(),
            parameterization=self._parameterization.to_config(),
            class_names=None if class_names is None else [str(name) for name in class_names],
            t_max=float(t_max),
            defaults=to_spec(self._defaults),
            vae_reference=vae_reference,
            pixel_range=[float(end) for end in pixel_range],
            latent_normalization=latent_normalization,
        )
        if vae is not None and self.codec.latent_channels != backbone.in_channels:
            raise ValueError(
                f"the vae has {self.codec.latent_channels} latent channels, the backbone takes "
                f"{backbone.in_channels}"
            )
        if getattr(backbone, "channels_last", False):
            backbone.to(memory_format=torch.channels_last)
        if compile:
            # The first call compiles; another batch size compiles once more, then for any batch size.
            backbone.compile(**(compile if isinstance(compile, Mapping) else {}))

    def register_modules(self, **kwargs: Any) -> None:
        """As in diffusers; a registered backbone is entered as ("dinit", class), whichever file it is in."""
        super().register_modules(**kwargs)
        for name, module in kwargs.items():
            if type(module) in [BACKBONES[entry] for entry in BACKBONES]:
                self.register_to_config(**{name: ("dinit", type(module).__name__)})

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Pipeline:
        """A shipped pipeline by name, a folder, or a hub id, in this order. Options as in diffusers.

        The folder is checked first: ValueError names every missing, unexpected or mis-shaped tensor. Only
        safetensors are read. FileNotFoundError says what was tried. A folder of diffusers, unconditional or with
        classes, opens as it is (see dinit.pipelines.diffusers_folder).
        """
        hub = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
        folder = locate(pretrained_model_name_or_path, **hub)
        if is_diffusers_folder(folder):
            pipeline = cls(**read_diffusers_folder(folder, kwargs))
        else:
            check_folder(folder, given=[name for name in ("backbone", "vae") if name in kwargs])
            pipeline = super().from_pretrained(folder, **{**kwargs, "use_safetensors": True})
        align(part for part in pipeline.components.values() if part is not None)
        pipeline.register_to_config(_name_or_path=str(pretrained_model_name_or_path))
        return pipeline

    @property
    def process(self) -> Process:
        """The path that the backbone was trained on."""
        return self._process

    @property
    def parameterization(self) -> Parameterization:
        """What the backbone's output means."""
        return self._parameterization

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes, in order."""
        return self._plain("class_names")

    @property
    def t_max(self) -> float:
        """The noisiest time that the backbone may be asked at."""
        return self._plain("t_max")

    @property
    def defaults(self) -> dict[str, Any]:
        """What a call uses where it says nothing: sampler, steps, grid, guidance."""
        return dict(self._defaults)

    def _plain(self, key: str) -> Any:
        config: Any = self.config
        return config[key]

    @property
    def codec(self) -> Codec:
        """Between images and what the backbone sees. ValueError where an autoencoder is needed and not there."""
        vae, reference = self.vae, self._plain("vae_reference")
        if vae is None and reference is not None:
            raise ValueError(
                f"this pipeline works on latents of the autoencoder {reference}, which is not in it: give it with "
                "Pipeline.from_pretrained(..., vae=AutoencoderKL.from_pretrained(...)), convert again with --vae, "
                "or ask for output_type='latent'"
            )
        if vae is not None:
            own = self._plain("latent_normalization")
            return AutoencoderKLCodec(vae, **({f"latents_{key}": own[key] for key in own} if own else {}))
        low, high = self._plain("pixel_range")
        return IdentityCodec(self.backbone.in_channels, low, high)

    def denoiser(self, labels: Label | Sequence[Label] | Tensor = None) -> Denoiser:
        """The network read as the posterior mean; with labels (numbers or names), conditioned on them."""
        denoiser = BackboneDenoiser(self.backbone, self.process, self.parameterization, self.t_max)
        if labels is None:
            return denoiser
        resolved = resolve_labels(labels, None, denoiser.num_classes, self.class_names)
        return denoiser.given(_with_null(resolved, denoiser.num_classes))

    def plan(
        self,
        labels: Label | Sequence[Label] | Tensor = None,
        *,
        num_images: int | None = None,
        sampler: Any = None,
        steps: int | None = None,
        grid: Any = None,
        guidance: Any = None,
        seed: int | Sequence[int] = 0,
        start_index: int = 0,
        batch_size: int | None = None,
    ) -> Call:
        """The call that these arguments of `__call__` make, validated, without running it."""
        resolved = resolve_labels(labels, num_images, self.backbone.num_classes, self.class_names)
        if sampler is None and "sampler" not in self._defaults:
            raise ValueError("give a sampler; this pipeline has no default")
        chosen = make_sampler(self._defaults["sampler"] if sampler is None else sampler)
        if grid is None:
            grid = chosen.own_grid or self._defaults.get("grid") or chosen.grid_for(self.process)
        elif steps is None and isinstance(grid, Tensor):
            steps = grid.numel()
        if steps is None and not (isinstance(grid, Mapping) and grid.get("name") == "times"):
            steps = self._defaults.get("steps")
        grid, steps = make_grid(grid, steps, self.process)
        return Call(
            labels=resolved,
            keys=make_keys(seed, len(resolved), start_index),
            sampler=chosen,
            steps=steps,
            grid=grid,
            guidance=make_guidance(self._defaults.get("guidance") if guidance is None else guidance),
            batch_size=DEFAULT_BATCH if batch_size is None else whole_number("batch_size", batch_size),
        )

    def __call__(
        self,
        labels: Label | Sequence[Label] | Tensor = None,
        *,
        output_type: OutputType = "pil",
        callback_on_step_end: Callable[[Step], None] | None = None,
        **options: Any,
    ) -> Generated:
        """Images of the given classes.

        labels: class numbers or names, one an image; one alone may be repeated by num_images=; None with
        num_images= is unconditional. sampler=, grid=, guidance=: an object, a name, or a mapping with options;
        None is the pipeline's default, guidance=[] is none; a list of guidances nests, the last outermost.
        steps=: sampling steps. seed=: an int (image k has the key (seed, start_index + k)) or one an image.
        batch_size=: at most that many at once; images do not depend on it. output_type: 'pil', 'np' (B, H, W, C)
        or 'pt' (B, C, H, W) in [0, 1], 'raw' (decoded, around [-1, 1]), 'latent' (what the denoiser sees).
        callback_on_step_end: called after every step of every batch with its Step.
        ValueError, before the network is first asked, for anything that cannot run.
        """
        return self.run(self.plan(labels, **options), output_type, callback_on_step_end)

    @torch.no_grad()
    def run(
        self,
        call: Call,
        output_type: OutputType = "pil",
        callback_on_step_end: Callable[[Step], None] | None = None,
    ) -> Generated:
        """Runs a planned call. Arguments as `__call__`."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"unknown output type {output_type!r}{suggest(str(output_type), list(OUTPUT_TYPES))}")
        codec = None if output_type == "latent" else self.codec
        denoiser = apply_guidance(self.denoiser(), call.guidance)
        batches = call.batches()
        total = len(batches) * len(plan(denoiser, call.steps, call.grid))
        last: list[Step] = []
        with _evaluating(self.backbone), self.progress_bar(total=total) as bar:  # pyright: ignore
            for batch in batches:
                step = None
                for step in self._iterate(denoiser, batch):
                    bar.update()
                    if callback_on_step_end is not None:
                        callback_on_step_end(step)
                assert step is not None, "a trajectory has at least one step"
                last.append(step)
            if codec is None:
                return Generated(torch.cat([step.x_s for step in last]), call, last[0].nfe)
            images = torch.cat([codec.decode(step.x_s) for step in last])
        return Generated(convert(images, output_type), call, last[0].nfe)

    def _iterate(self, denoiser: Denoiser, batch: Call) -> Iterator[Step]:
        source = NoiseSource(batch.keys)
        size, device = self.backbone.image_size, self._execution_device
        like = torch.empty(len(batch.keys), self.backbone.in_channels, size, size, device=device)
        noise = source.normal("initial", 0, like)
        labels = _with_null(batch.labels, self.backbone.num_classes)
        return batch.sampler.iterate(
            denoiser, noise, batch.steps, grid=batch.grid, labels=labels, noise_source=source
        )


class Trajectory:
    """A callback that keeps the posterior mean of every step: `frames[i]` is (B, C, H, W) over all batches."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Tensor]] = defaultdict(list)

    def __call__(self, step: Step) -> None:
        self._parts[step.index].append(step.x0)

    @property
    def frames(self) -> list[Tensor]:
        return [torch.cat(self._parts[index]) for index in sorted(self._parts)]


def open_pipeline(name: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Pipeline:
    """`Pipeline.from_pretrained` on a device, its networks in a dtype."""
    pipe = Pipeline.from_pretrained(name)
    for part in pipe.components.values():
        if (
            part is not None
        ):  # not part.to: diffusers' own warns of modules to keep in float32, of which we have none
            torch.nn.Module.to(part, dtype)
    return pipe.to(device)


def _with_null(labels: Sequence[int | None], num_classes: int) -> Tensor:
    return torch.tensor([num_classes if label is None else label for label in labels], dtype=torch.int64)


def _check_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults without empty ones. ValueError for unknown keys or values that cannot be made."""
    for key in defaults:
        if key not in DEFAULT_KEYS:
            raise ValueError(f"unknown pipeline default {key!r}{suggest(str(key), list(DEFAULT_KEYS))}")
    given = {key: value for key, value in defaults.items() if value is not None}
    if "sampler" in given:
        make_sampler(given["sampler"])
    make_guidance(given.get("guidance"))
    if "steps" in given:
        whole_number("steps", given["steps"])
    return given


@contextmanager
def _evaluating(backbone: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode for the while: dropout would make noise that no seed controls."""
    was = backbone.training
    backbone.eval()
    try:
        yield
    finally:
        backbone.train(was)
