"""Export of a pipeline to other programs' formats."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from dinit.cards import CARD, CardMetadata
from dinit.checkpoints.exporting import check_export, diffusers_model, published_state, scheduler_arguments
from dinit.files import user_path, whole_file, whole_folder
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.loading import INDEX
from dinit.targets import check_pipeline_target, check_target


def export(pipe: Pipeline, to: str | Path, format: str, overwrite: bool = False) -> Path:
    """Writes the pipeline's weights for another program, whole or not at all. Returns where.

    format: 'dit' and 'sit' write one .pt with the published names, 'diffusers' a folder for its DiTPipeline.
    ValueError, with the reason, where that program would give other images; FileExistsError unless overwrite.
    """
    target = user_path(to)
    process, parameterization = pipe.process.to_config(), pipe.parameterization.to_config()
    wanted = check_export(pipe.backbone, process, parameterization, format)
    if pipe.config["latent_normalization"] is not None:  # pyright: ignore
        raise ValueError(
            f"this pipeline's latents are normalised channel by channel, which {wanted.program} does not support; "
            "its images would be others"
        )
    if wanted.folder:
        check_pipeline_target(target, overwrite)
        scheduler, model = scheduler_arguments(pipe.process, pipe.parameterization), diffusers_model(pipe.backbone)
        with whole_folder(target) as temporary:
            _write_diffusers(temporary, pipe, model, scheduler)
        return target
    check_target(target, overwrite, ("pt", "pth"))
    target.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(target) as stream:
        torch.save(published_state(pipe.backbone), stream)
    return target


def _write_diffusers(folder: Path, pipe: Pipeline, model: Any, scheduler: dict[str, Any]) -> None:
    """A DiTPipeline folder. Its index is written by hand: diffusers' own saving needs a vae."""
    import diffusers
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    model.save_pretrained(folder / "transformer")
    DDIMScheduler(**scheduler).save_pretrained(folder / "scheduler")
    if pipe.vae is not None:
        pipe.vae.save_pretrained(folder / "vae")
    names = pipe.class_names or []
    index = {
        "_class_name": "DiTPipeline",
        "_diffusers_version": diffusers.__version__,
        "id2label": {str(label): name for label, name in enumerate(names)} or None,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "transformer": ["diffusers", "DiTTransformer2DModel"],
        "vae": [None, None] if pipe.vae is None else ["diffusers", "AutoencoderKL"],
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    head = CardMetadata(("diffusion", "class-conditional"), library_name="diffusers").front_matter()
    name, opened = type(pipe.backbone).__name__, "`DiTPipeline.from_pretrained(FOLDER)` opens it."
    text = f"{head}# {name}\n\nExported by dinit. {opened}\n"
    (folder / CARD).write_text(text, encoding="utf-8")
