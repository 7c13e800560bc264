"""Conversion of published weights to a dinit pipeline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights

import dinit
from dinit.cards import CARD
from dinit.checkpoints.advice import also_in_python
from dinit.checkpoints.imagenet import NUM_CLASSES, imagenet_names
from dinit.checkpoints.interop.schedule import read_scheduler
from dinit.checkpoints.interop.scheduler_config import SCHEDULERS, clipping_of, scheduler_of
from dinit.checkpoints.keymap import load_mapped
from dinit.checkpoints.latent_statistics import latent_statistics
from dinit.checkpoints.layouts import Layout
from dinit.checkpoints.reading import Checkpoint, read_checkpoint
from dinit.checkpoints.recognition import Recognised
from dinit.checkpoints.stored import RunArguments
from dinit.checkpoints.tables import check_tables, decimal, equal, precision
from dinit.data.sources import named
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.diffusion.discrete import BetaChain
from dinit.files import user_path, whole_folder
from dinit.models.base import Backbone
from dinit.models.codec import VAE_FOLDER, open_autoencoder
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.hub import converted_card
from dinit.pipelines.weights.arguments import backbone_arguments, called, recognise_checkpoint
from dinit.registry import construct
from dinit.targets import check_pipeline_target

RECORD = "conversion.json"
_ALMOST_NOISE = 0.999  # the first time of SiT's programs where noise or score is predicted
_PIXELS = (1, 3)
_AUTOENCODERS = {4: "stabilityai/sd-vae-ft-ema", 32: "hustvl/vavae-imagenet256-f16d32-dinov2"}


@dataclass(frozen=True)
class Converted:
    """The result of a conversion.

    Attributes:
        folder: The pipeline's folder.
        recognised: The checkpoint's layout, and what it was recognised by.
        weights: The part of the checkpoint that was read ("ema", "model"); "" for a bare state.
        backbone: Name of the backbone, or of the class where it is no pipeline's.
        arguments: Of the backbone.
        parameters: Number of parameters.
        notes: Assumptions, in words.
    """

    folder: Path
    recognised: Recognised
    weights: str
    backbone: str
    arguments: dict[str, Any]
    parameters: int
    notes: tuple[str, ...]


def convert(
    source: str | Path,
    to: str | Path,
    *,
    layout: str | None = None,
    weights: str | None = None,
    options: Mapping[str, Any] | None = None,
    process: Any = None,
    parameterization: Any = None,
    vae: str | Path | None = None,
    sha256: str | None = None,
    overwrite: bool = False,
) -> Converted:
    """Convert published weights to a pipeline folder, written completely or not at all.

    An upsampler or a classifier of guided-diffusion, which is no pipeline, becomes a model folder, which its
    class's from_pretrained opens.

    Args:
        source: A .pt, .pth, .ckpt, .bin, .tar or .safetensors file, the index of its shards, or a model or pipeline
            folder of diffusers.
        to: The new folder.
        layout: A name in LAYOUTS, for tensors that several layouts have.
        weights: Of a training checkpoint: 'ema', 'model' or the name of an entry; None is the averaged weights if
            there are any.
        options: Arguments of the backbone that cannot be inferred from the tensors, such as num_heads.
        process: A process, name or mapping, in place of the published one.
        parameterization: A parameterization, name or mapping, in place of the published one.
        vae: A folder or hub id of the AutoencoderKL, which is copied into the pipeline.
        sha256: Of the file, compared before it is opened.
        overwrite: Replace a pipeline in `to`.

    Returns:
        The folder, the layout with its evidence, and what was assumed.

    Raises:
        ValueError: the checkpoint or an argument is not accepted, or `to` contains something else than a pipeline;
            nothing was written.
        OSError: a file cannot be read or written.
    """
    try:
        return _convert(
            source, to, layout, weights, options or {}, process, parameterization, vae, sha256, overwrite
        )
    except ValueError as error:
        error.args = (also_in_python(str(error)),)
        raise


def _convert(
    source: str | Path,
    to: str | Path,
    layout: str | None,
    weights: str | None,
    options: Mapping[str, Any],
    process: Any,
    parameterization: Any,
    vae: str | Path | None,
    sha256: str | None,
    overwrite: bool,
) -> Converted:
    target = user_path(to)
    _check_target(target, user_path(source), overwrite)
    process = None if process is None else PROCESSES.create(process)
    parameterization = None if parameterization is None else PARAMETERIZATIONS.create(parameterization)
    checkpoint = read_checkpoint(source, weights, sha256)
    run = RunArguments.of(checkpoint.args, checkpoint.path)
    with named(source):
        recognised = recognise_checkpoint(checkpoint, run, layout)
    arguments, notes = backbone_arguments(recognised, checkpoint, run, options)
    backbone = _backbone(recognised.layout, arguments)
    _load(backbone, recognised, checkpoint)
    if recognised.layout.denoises:
        trained_on = _trained_on(recognised.layout, checkpoint, run, arguments, process, parameterization)
        if process is None:
            _check_betas(checkpoint, trained_on[0])
        product, more = _pipeline(backbone, recognised.layout, checkpoint, run, trained_on, vae)
    else:
        name = type(backbone).__name__
        product, more = backbone, [f"a model and no pipeline: load it with {name}.from_pretrained"]
    made = Converted(
        folder=target,
        recognised=recognised,
        weights=checkpoint.entry,
        backbone=recognised.layout.backbone if recognised.layout.denoises else type(backbone).__name__,
        arguments=arguments,
        parameters=sum(parameter.numel() for parameter in backbone.parameters()),
        notes=tuple(map(also_in_python, (*checkpoint.notes, *notes, *more))),
    )
    with whole_folder(target) as temporary:
        (temporary / CARD).write_text(
            converted_card(product, checkpoint.path.name, checkpoint.entry), encoding="utf-8"
        )
        product.save_pretrained(temporary)
        (temporary / RECORD).write_text(json.dumps(_record(made, checkpoint), indent=2) + "\n", encoding="utf-8")
    return made


def _check_target(target: Path, source: Path, overwrite: bool) -> None:
    """OSError or ValueError unless `target` can become a pipeline folder without losing anything else."""
    check_pipeline_target(target, overwrite)
    inside, whole = source.resolve(), target.resolve()
    if inside == whole or whole in inside.parents:
        raise ValueError(f"{target} holds the source {source}, which would be lost; choose another folder")


def _backbone(layout: Layout, arguments: Mapping[str, Any]) -> Backbone:
    """The network without memory for its parameters, which become those of the checkpoint; its buffers are real."""
    with init_empty_weights(include_buffers=False):
        return construct(layout.model, called(layout), arguments).eval()


def _load(backbone: Any, recognised: Recognised, checkpoint: Checkpoint) -> None:
    """Load the weights into the backbone. ValueError lists all that does not fit, or a table that is not ours."""
    layout, state = recognised.layout, checkpoint.state
    try:
        load_mapped(backbone, layout.prepare(state), layout.rules)
        check_tables(state, layout.tables(backbone))
    except ValueError as error:
        raise ValueError(
            f"{checkpoint.path}, read as {recognised.name} ({recognised.evidence}): {error}"
        ) from error


def _trained_on(
    layout: Layout,
    checkpoint: Checkpoint,
    run: RunArguments,
    arguments: Mapping[str, Any],
    process: Any,
    parameterization: Any,
) -> tuple[Any, Any]:
    """Process and parameterization: the given ones, those that are stored with the weights, or the published."""
    if process is not None and parameterization is not None:
        return process, parameterization
    published = layout.trained_on(arguments)
    stored = layout.process_of(checkpoint.state)
    if stored != layout.process:  # the state contains its noise levels
        published = stored, published[1]
    try:
        published = layout.stated_training(run, published)
    except ValueError as error:
        raise ValueError(f"{checkpoint.path}: {error}") from error
    if checkpoint.scheduler:
        published = _of_scheduler(checkpoint)
    return (
        published[0] if process is None else process,
        published[1] if parameterization is None else parameterization,
    )


def _check_betas(checkpoint: Checkpoint, process: Any) -> None:
    """ValueError where a noise schedule that stands next to the weights is not that of the process."""
    if checkpoint.betas is None:
        return
    made = PROCESSES.create(process)
    own = None
    if isinstance(made, BetaChain):
        before = torch.cat([torch.ones(1, dtype=torch.float64), made.alphas[:-1]])
        own = 1 - (made.alphas / before) ** 2
    if own is None or not equal(checkpoint.betas, own):
        few = [decimal(checkpoint.betas[i], precision(checkpoint.betas)) for i in (0, -1)]
        raise ValueError(
            f"{checkpoint.path} has {len(checkpoint.betas)} betas from {few[0]} to {few[1]} next to its weights, "
            f"which are not those of {made!r}: --process gives what it was trained on"
        )


def _of_scheduler(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """Process and parameterization from the folder's scheduler_config.json."""
    path = checkpoint.path / "scheduler" / "scheduler_config.json"
    return read_scheduler(scheduler_of(checkpoint.scheduler, str(path)))


def _pipeline(
    backbone: Any,
    layout: Layout,
    checkpoint: Checkpoint,
    run: RunArguments,
    trained_on: tuple[Any, Any],
    vae: str | Path | None,
) -> tuple[Pipeline, list[str]]:
    """The pipeline of the loaded backbone, and what was assumed."""
    autoencoder = _autoencoder(checkpoint, vae)
    channels, reference, notes = backbone.in_channels, None, []
    if autoencoder is None and channels not in _PIXELS:
        reference = _AUTOENCODERS.get(channels, f"of {channels} latent channels that it was trained with")
        notes.append(f"it has no autoencoder: it returns latents (those of {reference}); --vae adds one")
    normalization = None
    if layout.normalizes_latents:
        normalization, more = latent_statistics(checkpoint.path, run, channels)
        notes += more
    t_max = 1.0
    made, output = PROCESSES.create(trained_on[0]), PARAMETERIZATIONS.create(trained_on[1])
    if not isinstance(made, BetaChain) and output.singular(made.scales(1.0)):
        t_max = _ALMOST_NOISE
        notes.append(f"its output cannot be read at pure noise: it is sampled from t_max = {t_max:g}")
    elif output.singular(made.scales(1.0)):
        raise ValueError(
            f"{checkpoint.path}: the parameterization {output.registry_name!r} cannot be read at the noisy end of "
            f"{made.registry_name}, where no signal is left; such networks predict v, x0 or velocity: "
            "--parameterization, or another --process"
        )
    pipeline = Pipeline(
        backbone=backbone,
        process=trained_on[0],
        parameterization=trained_on[1],
        vae=autoencoder,
        class_names=_class_names(backbone.num_classes, checkpoint),
        t_max=t_max,
        defaults=_with_clipping(default_sampling(backbone, layout, trained_on[0]), checkpoint),
        vae_reference=reference,
        pixel_range=layout.pixel_range,
        latent_normalization=normalization,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, notes


def _with_clipping(defaults: dict[str, Any], checkpoint: Checkpoint) -> dict[str, Any]:
    """The defaults with what the folder's scheduler clips."""
    name = checkpoint.scheduler.get("_class_name")
    clipping = clipping_of(name, checkpoint.scheduler) if name in SCHEDULERS else None
    return {**defaults, "guidance": [*defaults["guidance"], clipping]} if clipping else defaults


def default_sampling(backbone: Any, layout: Layout, process: Any) -> dict[str, Any]:
    """The defaults of the pipeline's call: those of the published sampling program.

    Args:
        backbone: With its weights.
        layout: Of the checkpoint.
        process: What the weights were trained on, an object or a mapping.
    """
    learned = backbone.out_channels == 2 * backbone.in_channels
    guided = backbone.num_classes > 0 and backbone.null_class
    return {**layout.sampling(PROCESSES.create(process), learned), "guidance": layout.guidance(guided)}


def _autoencoder(checkpoint: Checkpoint, vae: str | Path | None) -> Any:
    """The given AutoencoderKL, or the one in the folder of the weights; None for neither."""
    stored = checkpoint.path / VAE_FOLDER
    place = stored if vae is None and stored.is_dir() else vae
    return None if place is None else open_autoencoder(place)


def _class_names(num_classes: int, checkpoint: Checkpoint) -> list[str] | None:
    """From the folder's own table of labels, or ImageNet's where there are 1000 classes."""
    table = checkpoint.index.get("id2label")
    if isinstance(table, dict) and sorted(table) == sorted(map(str, range(num_classes))):
        return [str(table[str(label)]) for label in range(num_classes)]
    return imagenet_names() if num_classes == NUM_CLASSES else None


def _record(made: Converted, checkpoint: Checkpoint) -> dict[str, Any]:
    """The origin of the weights, for conversion.json."""
    return {
        "source": checkpoint.path.name,
        "sha256": checkpoint.files,
        "weights": checkpoint.entry,
        "layout": made.recognised.name,
        "evidence": made.recognised.evidence,
        "notes": list(made.notes),
        "dinit": dinit.__version__,
    }
