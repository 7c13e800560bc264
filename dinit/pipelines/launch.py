"""Joining the processes that accelerate launch, or torchrun, started."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

from dinit.memory import keep_freed_memory
from dinit.training.recipe.model import Recipe

_PATIENCE = timedelta(hours=2)  # for what one process does alone while the others wait: grids, checkpoints


def make_accelerator(recipe: Recipe, out: Path) -> Accelerator:
    """Accelerate for a training run. ValueError where processes do not find each other, or for fp16 on a CPU."""
    precision = recipe.training.precision
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        # Processes on CPUs find each other only if told that they are on CPUs; else each would train alone.
        cpu=launched > 1 and not torch.accelerator.is_available(),
        mixed_precision="no" if precision == "fp32" else precision,
        log_with=recipe.tracker,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "logs")),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)],
    )
    if accelerator.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched and Accelerate joined {accelerator.num_processes}, so several "
            "runs would write to one folder; launch with torchrun or accelerate launch, without settings of its own"
        )
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("precision fp16 needs a GPU, and this run is on the CPU; choose fp32 or bf16")
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    return accelerator
