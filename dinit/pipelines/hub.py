"""Hub card and custom pipeline: files of a pipeline's folder that the Hub and diffusers' own entry read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinit.cards import CARD, CardMetadata
from dinit.checkpoints.locating import INDEX
from dinit.data.latents import source_of

if TYPE_CHECKING:
    from dinit.pipelines.generate import Pipeline
    from dinit.training.recipe.model import Recipe

# The first is named by the folder's index, so that the error of diffusers names it, and the folder opens with
# trust_remote_code=True; the second is what custom_pipeline=FOLDER looks for.
OWN_MODULE = "dinit_pipeline"
CUSTOM_PIPELINES = (f"{OWN_MODULE}.py", "pipeline.py")

# Only the one class: diffusers refuses a file with two.
CUSTOM_PIPELINE_TEXT = """\
# This folder needs dinit. Pipeline.from_pretrained of dinit opens it without this file; diffusers reads it in
# DiffusionPipeline.from_pretrained(..., trust_remote_code=True).
from dinit.pipelines.generate import Pipeline  # noqa: F401
"""


def has_card(repo_id: str, subfolder: str | None, token: str | None) -> bool:
    """Whether a repository of the Hub has a card; False where that cannot be found out."""
    from huggingface_hub import file_exists

    try:
        return file_exists(repo_id, CARD if subfolder is None else f"{subfolder}/{CARD}", token=token)
    except Exception:  # of the connection, of several libraries; the upload that follows raises them
        return False


def name_own_class(folder: Path) -> None:
    """Enter the class in the folder's index as diffusers spells one of a module in the folder."""
    path = folder / INDEX
    index = json.loads(path.read_text(encoding="utf-8"))
    index["_class_name"] = [OWN_MODULE, "Pipeline"]
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def pipeline_card(
    pipe: Pipeline,
    *,
    title: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
    metrics: Sequence[str] = (),
    base_model: str | None = None,
    lines: Sequence[str] = (),
) -> str:
    """The card of a pipeline: how to open it, and what is in it.

    Args:
        pipe: The pipeline.
        title: Its name; None is its backbone.
        license: An identifier of the Hub; None is 'unknown'.
        datasets: Names of the training data.
        metrics: Names of what was measured.
        base_model: Hub id of the pipeline that it was fine-tuned from.
        lines: Further rows of the table, '| key | value |'.

    Raises:
        ValueError: A license that is no identifier.
    """
    classes, size = pipe.num_classes, pipe.backbone.image_size
    tags = ("diffusion", "class-conditional" if classes else "unconditional")
    kind = f"{classes} classes" if classes else "unconditional"
    backbone = type(pipe.backbone).__name__
    defaults = {key: value for key, value in pipe.config["defaults"].items() if value}  # pyright: ignore
    rows = {
        "backbone": f"{backbone}, {sum(p.numel() for p in pipe.backbone.parameters()):,} parameters",
        "input": f"{pipe.backbone.in_channels}×{size}×{size}",
        "process": _short(pipe.process.to_config()),
        "parameterization": _short(pipe.parameterization.to_config()),
        "default call": ", ".join(f"{key} {_short(value)}" for key, value in defaults.items()),
    }
    return "\n".join(
        [
            CardMetadata(
                tags, license=license, datasets=datasets, metrics=metrics, base_model=base_model
            ).front_matter(),
            f"# {title or f'{backbone}, {kind}'}",
            "",
            f"Generates images, {kind}. It needs dinit (`pip install dinit`).",
            "",
            "```python",
            "from dinit import Pipeline",
            "",
            'pipe = Pipeline.from_pretrained("FOLDER_OR_HUB_ID")',
            f"images = pipe({'[0]' if classes else 'num_images=1'}).images",
            "```",
            "",
            "| | |",
            "|---|---|",
            *(f"| {key} | {value} |" for key, value in rows.items() if value),
            *lines,
            "",
        ]
    )


def trained_card(pipe: Pipeline, recipe: Recipe, facts: Mapping[str, Any]) -> str:
    """The card of a pipeline that a run made, from its recipe and the facts of its training."""
    evaluation, tuned = recipe.evaluation, recipe.finetune
    metrics = list(evaluation.metrics or _usual_metrics()) if evaluation.every else []
    rows = [
        f"| training | {facts['steps']:,} steps, {facts['images']:,} images; `recipe.yaml` in this folder |",
        f"| data | {', '.join(data_names(recipe.data.spec()))} |",
    ]
    if tuned is not None:
        rows.append(f"| fine-tuned from | {Path(tuned.init_from).name} ({tuned.mode}) |")
    return pipeline_card(
        pipe,
        title=recipe.name,
        datasets=data_names(recipe.data.spec()),
        metrics=metrics,
        base_model=base_model(recipe),
        lines=rows,
    )


def converted_card(product: Any, source: str, entry: str | None) -> str:
    """The card of what `dinit convert` made: a pipeline, or a network without one, as a classifier is.

    Args:
        product: What is saved.
        source: Name of the checkpoint's file or folder.
        entry: Which weights in it; None where it holds one network.
    """
    weights = f"`{source}`" + (f", its {entry} weights" if entry else "")
    if hasattr(product, "parameterization"):
        return pipeline_card(product, lines=[f"| converted from | {weights}; see `conversion.json` |"])
    name = type(product).__name__
    task = "image-classification" if "classifier" in name.lower() else "image-to-image"
    head = CardMetadata(("diffusion",), pipeline_tag=task)
    lines = [
        head.front_matter(),
        f"# {name}",
        "",
        f"Converted from {weights}; see `conversion.json`. dinit opens it: `{name}.from_pretrained(FOLDER)`.",
        "",
    ]
    return "\n".join(lines)


def base_model(recipe: Recipe) -> str | None:
    """The Hub id that a recipe fine-tunes; None for a folder or a shipped pipeline."""
    if recipe.finetune is None or Path(recipe.finetune.init_from).expanduser().exists():
        return None
    return recipe.finetune.init_from


def data_names(spec: Mapping[str, Any]) -> list[str]:
    """The names of a recipe's data: a Hub id, the last part of a path, or the name in `dinit list data`."""
    try:
        images = source_of(spec)
    except (LookupError, OSError, ValueError):  # the latents are no longer there
        images = dict(spec)
    path = str(images.get("path") or "")
    if not path:
        return [str(images["name"])]
    on_hub = images["name"] == "hf" and path.count("/") <= 1 and not Path(path).expanduser().exists()
    return [path if on_hub else Path(path).name]


def adapter_card(recipe: Recipe) -> str:
    """The card of a run's LoRA adapter."""
    tuned = recipe.finetune
    name = "" if tuned is None else Path(tuned.init_from).name
    head = CardMetadata(
        ("diffusion", "lora"), datasets=data_names(recipe.data.spec()), base_model=base_model(recipe)
    )
    lines = [
        head.front_matter(),
        f"# {recipe.name}: LoRA adapter of {name}",
        "",
        "The low-rank additions alone, in the files that peft writes. The pipeline of the same run has them in its",
        'weights, and dinit opens it: `Pipeline.from_pretrained("RUN/pipeline")`.',
        "",
    ]
    return "\n".join(lines)


def _usual_metrics() -> Sequence[str]:
    from dinit.evaluation.metrics.base import DEFAULT_METRICS  # torch-fidelity is slow to import

    return DEFAULT_METRICS


def _short(value: Any) -> str:
    """A name with its options in one word."""
    if isinstance(value, Mapping):
        options = ",".join(f"{key}={_short(one)}" for key, one in value.items() if key != "name")
        text = f"{value.get('name', '')}{':' if options else ''}{options}"
        return text if len(text) <= 120 else f"{text[:117]}..."
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_short, value))
    return str(value)
