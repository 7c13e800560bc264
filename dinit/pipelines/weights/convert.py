"""Conversion of published weights to a dinit pipeline."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dinit
from dinit.checkpoints.imagenet import NUM_CLASSES, imagenet_names
from dinit.checkpoints.interop.schedule import read_scheduler
from dinit.checkpoints.keymap import load_mapped
from dinit.checkpoints.layouts import Layout
from dinit.checkpoints.reading import Checkpoint, read_checkpoint
from dinit.checkpoints.recognition import Recognised, recognise_state
from dinit.checkpoints.tables import check_tables
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.diffusion.discrete import BetaChain
from dinit.files import user_path, whole_folder
from dinit.models.base import Backbone
from dinit.models.codec import VAE_FOLDER, open_autoencoder
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.outputs.targets import check_pipeline_target
from dinit.registry import construct, suggest

RECORD = "conversion.json"
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
    target = user_path(to)
    _check_target(target, user_path(source), overwrite)
    process = None if process is None else PROCESSES.create(process)
    parameterization = None if parameterization is None else PARAMETERIZATIONS.create(parameterization)
    checkpoint = read_checkpoint(source, weights, sha256)
    recognised = recognise_state(checkpoint.state, checkpoint.path, checkpoint.args, layout)
    arguments, notes = _arguments(recognised, checkpoint, options or {})
    backbone = _backbone(recognised.layout, arguments)
    _load(backbone, recognised, checkpoint)
    if recognised.layout.denoises:
        trained_on = _trained_on(recognised.layout, checkpoint, arguments, process, parameterization)
        product, more = _pipeline(backbone, recognised.layout, checkpoint, trained_on, vae)
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
        notes=(*checkpoint.notes, *notes, *more),
    )
    with whole_folder(target) as temporary:
        product.save_pretrained(temporary)
        (temporary / RECORD).write_text(json.dumps(_record(made, checkpoint), indent=2) + "\n", encoding="utf-8")
    return made


def _check_target(target: Path, source: Path, overwrite: bool) -> None:
    """OSError or ValueError unless `target` can become a pipeline folder without losing anything else."""
    check_pipeline_target(target, overwrite)
    inside, whole = source.resolve(), target.resolve()
    if inside == whole or whole in inside.parents:
        raise ValueError(f"{target} holds the source {source}, which would be lost; choose another folder")


def _arguments(
    recognised: Recognised, checkpoint: Checkpoint, options: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The backbone's arguments: from the tensors, a config stored with them, and the options; and assumptions."""
    layout = recognised.layout
    shapes = {key: tuple(tensor.shape) for key, tensor in checkpoint.state.items()}
    try:
        found = {**layout.options(shapes), **layout.values(checkpoint.state)}
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"{checkpoint.path} is of layout {recognised.name} ({recognised.evidence}), but the sizes cannot be "
            f"inferred from it: {_reason(error)}; a part of it is lost, or it is of another family"
        ) from error
    stored = layout.arguments(checkpoint.config) if checkpoint.config else {}
    accepted = [name for name in inspect.signature(layout.model.__init__).parameters if name != "self"]
    for name in options:
        if name not in accepted:
            raise ValueError(f"backbone {layout.backbone!r} has no argument {name!r}{suggest(name, accepted)}")
    given = {**stored, **options}
    unknown = [name for name, value in found.items() if value is None and name not in given]
    if unknown:
        commands = " ".join(f"--option {name}=..." for name in unknown)
        raise ValueError(
            f"{', '.join(unknown)} cannot be inferred from the tensors, and no published {layout.backbone} has "
            f"these sizes; give what it was trained with (null for none): {commands}"
        )
    found |= given
    assumed = "image_size" in accepted and "image_size" not in found
    notes = ["image_size is assumed to be the default, it cannot be inferred: --option image_size=N sets it"]
    return found, notes if assumed else []


def _backbone(layout: Layout, arguments: Mapping[str, Any]) -> Backbone:
    return construct(layout.model, f"backbone {layout.backbone!r}", arguments).eval()


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
    layout: Layout, checkpoint: Checkpoint, arguments: Mapping[str, Any], process: Any, parameterization: Any
) -> tuple[Any, Any]:
    """Process and parameterization: the given ones, those of a scheduler in the folder, or the published."""
    published = layout.trained_on(arguments)
    stored = layout.process_of(checkpoint.state)
    if stored != layout.process:  # the state contains its noise levels
        published = stored, published[1]
    if checkpoint.scheduler and (process is None or parameterization is None):
        published = _of_scheduler(checkpoint)
    return (
        published[0] if process is None else process,
        published[1] if parameterization is None else parameterization,
    )


def _of_scheduler(checkpoint: Checkpoint) -> tuple[Any, Any]:
    """Process and parameterization from the folder's scheduler_config.json."""
    import diffusers

    name = str(checkpoint.scheduler.get("_class_name"))
    kind: Any = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if kind is None:
        raise ValueError(
            f"{checkpoint.path}/scheduler is a {name}, unknown to diffusers; give process, parameterization"
        )
    return read_scheduler(kind.from_config(checkpoint.scheduler))


def _pipeline(
    backbone: Any, layout: Layout, checkpoint: Checkpoint, trained_on: tuple[Any, Any], vae: str | Path | None
) -> tuple[Pipeline, list[str]]:
    """The pipeline of the loaded backbone, and what was assumed."""
    autoencoder = _autoencoder(checkpoint, vae)
    channels, reference, notes = backbone.in_channels, None, []
    if autoencoder is None and channels not in _PIXELS:
        reference = _AUTOENCODERS.get(channels, f"of {channels} latent channels that it was trained with")
        notes.append(f"it has no autoencoder: it returns latents (those of {reference}); --vae adds one")
    pipeline = Pipeline(
        backbone=backbone,
        process=trained_on[0],
        parameterization=trained_on[1],
        vae=autoencoder,
        class_names=_class_names(backbone.num_classes, checkpoint),
        defaults=default_sampling(backbone, layout, trained_on[0]),
        vae_reference=reference,
        pixel_range=layout.pixel_range,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, notes


def default_sampling(backbone: Any, layout: Layout, process: Any) -> dict[str, Any]:
    """The defaults of the pipeline's call: those of the published programs.

    Chains of betas: ancestral sampling with 250 respaced steps; flows: 50 steps of an ODE solver; score_sde's
    continuous processes: 1000 steps of Euler–Maruyama. Guidance where there is a null class.
    """
    made = PROCESSES.create(process)
    name = made.registry_name
    guided = backbone.num_classes > 0 and backbone.null_class and layout.guidance_scale != 1
    guidance = {"name": "cfg", "scale": layout.guidance_scale, "channels": layout.guided_channels}
    learned = backbone.out_channels == 2 * backbone.in_channels
    if isinstance(made, BetaChain):
        variance = "learned-range" if learned else "fixed-large"
        how = {"sampler": {"name": "ddpm", "variance": variance}, "steps": 250, "grid": {"name": "respaced"}}
    elif name == "flow":
        how = {"sampler": {"name": "heun"}, "steps": 50}
    else:
        how = {"sampler": {"name": "euler-maruyama"}, "steps": 1000}
    return {**how, "guidance": [guidance] if guided else []}


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


def _reason(error: Exception) -> str:
    return f"tensor {error} is missing" if isinstance(error, KeyError) else str(error)


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
