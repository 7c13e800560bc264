"""Output of a training run: the pipeline of its averaged weights, and its previews."""

from __future__ import annotations

import io
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import dinit
from dinit.cards import CARD
from dinit.data import ImageData
from dinit.files import whole_folder, write_atomically
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.hub import trained_card
from dinit.pipelines.outputs.files import caption
from dinit.pipelines.outputs.sheets import draw_sheet, lay_out
from dinit.training.build import make_backbone
from dinit.training.finetune.adapters import merged
from dinit.training.objective import Objective
from dinit.training.recipe.model import Recipe
from dinit.training.run.folder import write_recipe
from dinit.training.run.health import image_statistics

_CLASSES, _COLUMNS = 10, 8  # of a sheet of previews
_WANTED = 72  # pixels of a preview: a sheet then fills its place on the health page


def make_pipeline(
    network: Any, recipe: Recipe, objective: Objective, data: ImageData, device: torch.device
) -> Pipeline:
    """The pipeline of a network that the recipe trains, with the autoencoder where it is trained on latents."""
    sampling = recipe.sampling
    pipeline = Pipeline(
        backbone=merged(network),
        process=objective.process,
        parameterization=objective.parameterization,
        class_names=list(data.class_names) or None,
        t_max=recipe.t_max,
        defaults={
            "sampler": sampling.sampler.spec(),
            "steps": sampling.steps,
            "grid": None if sampling.grid is None else sampling.grid.spec(),
            "end": sampling.end,
            "guidance": [guidance.spec() for guidance in sampling.guidance],
        },
        **data.pipeline_parts(),
    )
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_model(folder: Path, recipe: Recipe, objective: Objective, data: ImageData) -> None:
    """Writes the run's pipeline without the backbone's weights, which a checkpoint has."""
    with torch.device("meta"):
        backbone: Any = make_backbone(recipe, data)
    backbone.to_empty(device="cpu")
    pipeline = make_pipeline(backbone, recipe, objective, data, torch.device("cpu"))
    with whole_folder(folder) as temporary:
        pipeline.save_pretrained(temporary)
        for weights in (temporary / "backbone").glob("*.safetensors*"):
            weights.unlink()


@torch.no_grad()
def draw_samples(pipeline: Pipeline, seed: int, target: Path, title: str = "") -> dict[str, float]:
    """Writes a sheet of samples, a row a class with its name, always from the same noise; ten classes spread over
    all where there are more. Unconditional samples have their numbers: number k has the key (seed, k).

    Args:
        pipeline: Of the network that is trained.
        seed: Of the noise.
        target: File to write, .png.
        title: What stands before the call in the sheet's title, such as the run and its step.

    Returns:
        Mean and standard deviation of what the network made of the noise, to compare with those of its data.
    """
    classes = pipeline.backbone.num_classes
    labels = [label for label in preview_classes(classes) for _ in range(_COLUMNS)]
    made = pipeline(labels or [None] * _COLUMNS**2, seed=seed, output_type="latent")
    finite = made.images.isfinite().all()
    latents = made.images if finite else torch.nan_to_num(made.images, 0.0, 1.0, -1.0)
    decoded = pipeline.codec.decode(latents)
    names = pipeline.class_names or [str(label) for label in range(classes)]
    shown = [names[label] for label in labels] or [f"{k}" for k in range(len(decoded))]
    words = [title, caption(pipeline, made.call, made.nfe), "" if finite else "not finite"]
    layout = lay_out(shown, decoded.shape[-1], ", ".join(word for word in words if word), _WANTED)
    buffer = io.BytesIO()
    draw_sheet(decoded, layout).save(buffer, "PNG")
    write_atomically(target, buffer.getvalue())
    return image_statistics(made.images)


def preview_classes(classes: int) -> list[int]:
    """Classes that previews show: all, or ten at equal distances, the first and the last among them.

    Args:
        classes: How many there are; 0 is unconditional, and then there are none.

    Returns:
        Class numbers, in order.
    """
    if classes <= _CLASSES:
        return list(range(classes))
    return [round(k * (classes - 1) / (_CLASSES - 1)) for k in range(_CLASSES)]


def export(folder: Path, pipeline: Pipeline, recipe: Recipe, data: ImageData, facts: Mapping[str, Any]) -> None:
    """Write the pipeline's folder, with recipe and facts of its training; an old folder is replaced whole."""
    loop = recipe.training
    known = {
        "weights": "ema",
        "steps": loop.steps,
        "images": loop.steps * loop.batch_size,
        "parameters": sum(p.numel() for p in pipeline.backbone.parameters()),
        "data": data.fingerprint(),
        **facts,
        "versions": {
            "dinit": dinit.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    with whole_folder(folder) as temporary:
        (temporary / CARD).write_text(trained_card(pipeline, recipe, known), encoding="utf-8")
        pipeline.save_pretrained(temporary)
        write_recipe(temporary, recipe)
        (temporary / "training.json").write_text(json.dumps(known, indent=2) + "\n")
