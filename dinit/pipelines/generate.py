"""Pipeline for generation: a diffusers DiffusionPipeline of a backbone, its process and its parameterization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Unpack, overload

import torch

from dinit.diffusion import (
    PARAMETERIZATIONS,
    PROCESSES,
    BackboneDenoiser,
    Denoiser,
    Parameterization,
    Process,
)
from dinit.inverse.measurement import Measurement
from dinit.models.codec import (
    AutoencoderKLCodec,
    Codec,
    IdentityCodec,
    align,
)
from dinit.pipelines.advice import CALL, unknown_keywords
from dinit.pipelines.attributes import Attributes
from dinit.pipelines.call import (
    DEFAULT,
    CacheLike,
    CallOptions,
    Default,
    EditLike,
    GridLike,
    GuidanceLike,
    SamplerLike,
    to_spec,
)
from dinit.pipelines.callbacks import Callback, Trajectory
from dinit.pipelines.defaults import CallDefaults, check_defaults
from dinit.pipelines.diffusers_methods import DiffusersMethods
from dinit.pipelines.editing import EditingCalls
from dinit.pipelines.labels import Generators, Labels, Seeds, resolve_labels
from dinit.pipelines.loading import LoadOptions
from dinit.pipelines.method import MethodLike
from dinit.pipelines.opening import OpeningMethods
from dinit.pipelines.outputs.sheets import OutputType
from dinit.pipelines.parts import check_parts, made
from dinit.pipelines.pictures import ImageLike, PictureLike
from dinit.pipelines.preparing import PreparingMethods
from dinit.pipelines.running import Generated, RunningMethods, with_null
from dinit.pipelines.saving import SavingMethods
from dinit.samplers.points import End

__all__ = ["Generated", "LoadOptions", "OutputOptions", "Pipeline", "Trajectory"]


class OutputOptions(CallOptions, total=False):
    """All keywords of a pipeline's call, but for return_dict."""

    output_type: OutputType
    callback_on_step_end: Callback | None


class Pipeline(
    EditingCalls,
    CallDefaults,
    Attributes,
    SavingMethods,
    DiffusersMethods,
    OpeningMethods,
    PreparingMethods,
    RunningMethods,
):
    """Generates images: any sampler, any guidance, on one trained network.

    Saved, it is a diffusers folder: model_index.json with all of the plain values, backbone/, and vae/ where
    there is one.

    `sampler`, `steps`, `grid`, `end`, `guidance` and `scheduler` are the defaults of its calls and may be assigned:
    `pipe.sampler = "heun"`, `pipe.guidance = 4.0`. They are checked when they are assigned, and saved with the
    pipeline.

    Args:
        backbone: a dinit Backbone.
        process: the path that it was trained on, an object or a mapping {"name": ..., **options}.
        parameterization: what its output means, an object or a mapping.
        vae: an AutoencoderKL where the backbone works on latents.
        class_names: one a class.
        t_max: below 1 where the parameterization is singular at pure noise.
        defaults: sampler, steps, grid, end and guidance of a call that names none; each as `__call__` takes it.
        vae_reference: where to find the autoencoder of a backbone on latents that comes without its vae; images
            then cannot be decoded.
        pixel_range: of the images that a backbone on pixels was trained on, where it is not [-1, 1] (score_sde's VE
            has [0, 1]).
        latent_normalization: {"mean": [C], "std": [C]} of the latents that the backbone was trained on, in place of
            the autoencoder's own scale and shift, whichever autoencoder is given; see AutoencoderKLCodec.
        compile: run the backbone through torch.compile, once for all steps; a mapping has its options. Not saved.

    Raises:
        ValueError: a singular pair, a codec that does not fit, or defaults that are not registered.
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
        check_parts(backbone, vae, class_names, t_max)
        if process is None or parameterization is None:
            raise ValueError("a pipeline needs process= and parameterization=, e.g. {'name': 'vp-discrete'}")
        self._process = made(PROCESSES, Process, process)
        self._parameterization = made(PARAMETERIZATIONS, Parameterization, parameterization)
        self._defaults = check_defaults(defaults or {})
        if class_names is not None and len(class_names) != backbone.num_classes:
            raise ValueError(f"{len(class_names)} class names for a backbone of {backbone.num_classes} classes")
        BackboneDenoiser(backbone, self._process, self._parameterization, t_max)  # refuses a singular pair
        align(
            part for part in (backbone, vae) if part is not None
        )  # so that a loaded network's bits are the saved's
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
        self._codec = self._make_codec()
        if self._codec is not None and self._codec.latent_channels != backbone.in_channels:
            raise ValueError(
                f"the vae has {self._codec.latent_channels} latent channels, the backbone takes "
                f"{backbone.in_channels}"
            )
        if getattr(backbone, "channels_last", False):
            backbone.to(memory_format=torch.channels_last)
        if compile:
            # The first call compiles; another batch size compiles once more, then for any batch size.
            backbone.compile(**(compile if isinstance(compile, Mapping) else {}))

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
        """The largest time at which the backbone may be evaluated."""
        return self._plain("t_max")

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 for an unconditional pipeline."""
        return self.backbone.num_classes

    @property
    def image_size(self) -> int:
        """Height = width of the images, in pixels. ValueError where an autoencoder is needed and not there."""
        return self.backbone.image_size * self.codec.downscale

    def _plain(self, key: str) -> Any:
        config: Any = self.config
        return config[key]

    @property
    def codec(self) -> Codec:
        """The codec between images and the backbone's input. ValueError where a needed autoencoder is missing."""
        if self._codec is None:
            raise ValueError(
                f"this pipeline works on latents of the autoencoder {self._plain('vae_reference')}, which is not "
                "in it: give it with Pipeline.from_pretrained(..., vae=AutoencoderKL.from_pretrained(...)), "
                "convert again with --vae, or generate latents: output_type='latent', or `dinit generate "
                "--latents FILE.safetensors`"
            )
        return self._codec

    def _make_codec(self) -> Codec | None:
        """The codec of the present vae; None where the vae is not here. Freezes the vae."""
        if self.vae is not None:
            own = self._plain("latent_normalization")
            return AutoencoderKLCodec(self.vae, **({f"latents_{key}": own[key] for key in own} if own else {}))
        if self._plain("vae_reference") is not None:
            return None
        return IdentityCodec(self.backbone.in_channels, *self._plain("pixel_range"))

    def denoiser(self, labels: Labels = None) -> Denoiser:
        """The network read as the posterior mean; with labels (numbers or names), conditioned on them."""
        denoiser = BackboneDenoiser(self.backbone, self.process, self.parameterization, self.t_max)
        if labels is None:
            return denoiser
        resolved = resolve_labels(labels, None, denoiser.num_classes, self.class_names)
        return denoiser.given(with_null(resolved, denoiser.num_classes))

    @overload
    def __call__(
        self, labels: Labels = None, *, return_dict: Literal[True] = True, **options: Unpack[OutputOptions]
    ) -> Generated: ...

    @overload
    def __call__(
        self, labels: Labels = None, *, return_dict: Literal[False], **options: Unpack[OutputOptions]
    ) -> tuple[Any]: ...

    def __call__(
        self,
        labels: Labels = None,
        *positional: Any,
        num_images: int | None = None,
        sampler: SamplerLike | None = None,
        steps: int | None = None,
        grid: GridLike | None = None,
        end: End | None = None,
        guidance: GuidanceLike | Sequence[GuidanceLike] | Default | None = DEFAULT,
        seed: Seeds | None = 0,
        start_index: int = 0,
        batch_size: int | None = None,
        cache: CacheLike | None = None,
        edits: EditLike | Sequence[EditLike] | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        return_dict: bool = True,
        class_labels: Labels = None,
        guidance_scale: float | None = None,
        num_inference_steps: int | None = None,
        generator: Generators | None = None,
        eta: float | None = None,
        image: ImageLike | None = None,
        strength: float | None = None,
        mask: PictureLike | None = None,
        measurement: Measurement | None = None,
        method: MethodLike | None = None,
        **foreign: Any,
    ) -> Generated | tuple[Any]:
        """Images of the given classes.

        The keywords of diffusers' DiTPipeline, DDPMPipeline and DDIMPipeline are taken too and mean the same.

        Args:
            labels: class numbers or names, one an image; one alone may be repeated by num_images. None is the null
                class, or what an unconditional pipeline generates.
            num_images: number of images for one label or none, at least 1.
            sampler: a Sampler, a name with or without options ("heun", "ddim:eta=0.5"), a mapping {"name": "ddim",
                "eta": 0.5}, or a diffusers scheduler. None is the pipeline's default.
            steps: sampling steps, at least 1. None is the pipeline's default.
            grid: where the steps fall: a TimeGrid, a name, a mapping, or decreasing times in [0, 1].
                None is the sampler's own, the pipeline's default, or the usual one of sampler and process.
            end: 'posterior-mean' ends at the last time with noise and returns the posterior mean there, 'clean'
                takes the sampler's own step from there to t = 0, 'state' returns x at the grid's last time, with
                the noise that it has. None is the sampler's: 'posterior-mean', but for flow-sde with a last_step.
            guidance: a Guidance, a name with or without options ("cfg:scale=4"), a mapping, a number (the scale of
                CFG), or a sequence of them, of which the last is outermost. None and [] are no guidance; left out
                (DEFAULT), it is the pipeline's default.
            seed: a whole number: image k has the noise of the key (seed, start_index + k); or one an image. None
                draws a seed from torch's default generator, and the call records it.
            start_index: index of the first image of one seed.
            batch_size: images that the network evaluates at once. Images do not depend on it. Without labels and
                num_images it is the number of images as well, as in DDPMPipeline.
            cache: of the network's features from step to step ("deepcache:interval=3"): a Cache, a name with or
                without options, or a mapping. None is none. The images change, see `docs/faster.md`.
            edits: of what the network's skips join ("freeu"): one Edit, name or mapping, or a sequence in the order
                of application. None is none.
            output_type: 'pil', 'np' (B, H, W, C) or 'pt' (B, C, H, W) in [0, 1], 'raw' (decoded, around [-1, 1]),
                'latent' (the sample before it is decoded).
            callback_on_step_end: called after every step of every batch, with its `Step`; or, where it takes four
                arguments, with (pipe, i, t, {"latents": x}) as in diffusers, t being the number that the network is
                given for the time. It cannot change the latents.
            return_dict: False gives a tuple (images,).
            class_labels: labels, by diffusers' name.
            guidance_scale: scale of CFG, by diffusers' name: the default guidance with its CFG at this scale. 1 and
                less are no CFG, as in diffusers.
            num_inference_steps: steps, by diffusers' name.
            generator: in place of seed, a torch.Generator, or a list of one an image. Each is advanced by one draw
                of a whole number, which is the seed of all images, or of its one image. The same state gives the
                same images, though not those of diffusers.
            eta: of a sampler that has it (ddim, ancestral, ...), in place of its own.
            image: start from it, as SDEdit does: one for all labels, or one a label. A file or PIL image is made
                upright, and its central square scaled to the pipeline's size; a tensor (B, C, H, W) in [-1, 1] or
                an array (B, H, W, C) of bytes or in [0, 1] must have it.
            strength: the last int(steps * strength) steps are taken, from alpha image + sigma noise. 0 returns the
                image. None is 0.8, and with a mask 1, from noise alone.
            mask: repaint the image where it is white, as in diffusers; the rest keeps its values. A file, PIL
                image, array or tensor of the image's size.
            measurement: of the images, y = A(x) + noise_std n in [-1, 1]: `dinit.inverse.Measurement`.
            method: how mask or measurement is used: a posterior guidance, which becomes the innermost, or a
                posterior sampler, in which `sampler` is the solver where it has one. None is 'mmps'; 'dps' for an
                operator that is not linear, as all are on latents.
            *positional: refused; only labels go without a keyword.
            **foreign: refused, with the name of each in dinit.

        Raises:
            ValueError: anything that cannot run, or a keyword that is none of these, before the first evaluation of
                the network.
        """
        if positional:
            raise ValueError(f"only labels go without a keyword, got {positional[0]!r} after them; name it")
        if foreign:
            raise unknown_keywords("a pipeline's call", foreign, KEYWORDS, CALL)
        call = self.prepare(
            labels,
            num_images=num_images,
            sampler=sampler,
            steps=steps,
            grid=grid,
            end=end,
            guidance=guidance,
            seed=seed,
            start_index=start_index,
            batch_size=batch_size,
            cache=cache,
            edits=edits,
            class_labels=class_labels,
            guidance_scale=guidance_scale,
            num_inference_steps=num_inference_steps,
            generator=generator,
            eta=eta,
            image=image,
            strength=strength,
            mask=mask,
            measurement=measurement,
            method=method,
        )
        generated = self.run(call, output_type, callback_on_step_end)
        return generated if return_dict else (generated.images,)


KEYWORDS = ("labels", *OutputOptions.__annotations__, "return_dict")
"""Names of the keywords of a pipeline's call."""
