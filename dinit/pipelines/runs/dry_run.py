"""Dry run of a recipe: data, memory, a few steps, a checkpoint and previews, and an estimate of the run's time."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from dinit.memory import available, in_units, resident
from dinit.pipelines.train import train
from dinit.training.build import make_data
from dinit.training.recipe.model import Recipe
from dinit.training.run.checkpoint import list_checkpoints
from dinit.training.run.memory import Memory, estimate_memory
from dinit.training.run.profile import BETWEEN

_STEPS = 9  # of which the first five warm up


@dataclass(frozen=True)
class DryRun:
    """The result. images: of the data set. memory: estimated. available: bytes of the device, None where unknown.

    step, checkpoint, grid: seconds each. checkpoint_bytes: of one on disk. disk: free bytes where the run will be.
    seconds: of the whole run. fits: False where the memory or the disk does not suffice; where it is the memory,
    nothing was run and the seconds are 0. program: bytes of the process before the run, None where unknown.
    """

    images: int
    memory: Memory
    available: int | None
    fits: bool
    disk: int
    step: float = 0.0
    checkpoint: float = 0.0
    grid: float = 0.0
    checkpoint_bytes: int = 0
    seconds: float = 0.0
    program: int | None = None

    def lines(self, recipe: Recipe) -> Iterator[str]:
        """The result as text."""
        memory, loop = self.memory, recipe.training
        yield f"data: {self.images:,} images, read"
        parts = {"parameters": memory.parameters, "gradients": memory.gradients, "optimiser": memory.optimizer}
        parts |= {"averages": memory.averages, "activations": memory.activations or 0}
        listed = ", ".join(f"{name} {in_units(value)}" for name, value in parts.items())
        yield f"memory: about {in_units(memory.total)} at the peak of a step ({listed})"
        if self.program is not None:
            yield f"memory of the program itself: {in_units(self.program)}"
        if memory.note:
            yield memory.note
        if self.available is not None:
            yield f"available: {in_units(self.available)}"
        if self.step:
            yield f"a step of {loop.batch_size} images: {1000 * self.step:.1f} ms"
            yield f"a checkpoint: {in_units(self.checkpoint_bytes)}, {self.checkpoint:.2f} s"
            yield f"disk: {in_units((loop.keep + 1) * self.checkpoint_bytes)} needed, {in_units(self.disk)} free"
            yield f"a grid of previews: {self.grid:.2f} s"
            yield f"the run of {loop.steps:,} steps: about {_duration(self.seconds)}"
        if not self.fits:
            yield "this will not fit: see memory and disk above"


def dry_run(recipe: Recipe, out: Path) -> DryRun:
    """Tries the recipe in a temporary folder next to `out`, which is removed. Nothing is written to `out`.

    ValueError as train; also where several processes were launched: one is enough.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("a dry run takes one process; launch it without accelerate or torchrun")
    data = make_data(recipe)
    for index in (0, len(data) - 1):
        data.sample(index, key=0)
    place = next(folder for folder in out.resolve().parents if folder.exists())
    program = resident()
    memory, free, disk = estimate_memory(recipe, data), _available(), shutil.disk_usage(place).free
    if free is not None and memory.total > free:
        return DryRun(len(data), memory, free, False, disk, program=program)
    with tempfile.TemporaryDirectory(prefix=".dinit-dry-run-", suffix=".tmp", dir=place) as folder:
        run = train(_short(recipe), Path(folder) / "run", progress=False, profile=True)
        parts = json.loads((run.folder / "profile.json").read_text())["parts"]
        (last,) = list_checkpoints(run.folder / "checkpoints")
        size = sum(file.stat().st_size for file in last.iterdir())
    loop, steps = recipe.training, _STEPS - 5
    step = sum(part["ms"] for name, part in parts.items() if name not in BETWEEN) / 1000
    checkpoint, grid = (parts.get(name, {"ms": 0.0})["ms"] * steps / 1000 for name in BETWEEN)
    grids = loop.steps // loop.sample_every + 1 if loop.sample_every else 0
    seconds = loop.steps * step + -(-loop.steps // loop.checkpoint_every) * checkpoint + grids * grid
    fits = (loop.keep + 1) * size <= disk
    return DryRun(len(data), memory, free, fits, disk, step, checkpoint, grid, size, seconds, program)


def _short(recipe: Recipe) -> Recipe:
    """The same training, of a few steps, with a checkpoint and previews at the last."""
    loop = recipe.training.model_copy(
        update={"steps": _STEPS, "sample_every": _STEPS, "checkpoint_every": _STEPS, "log_every": _STEPS, "keep": 1}
    )
    schedule = recipe.schedule.model_copy(update={"kind": "constant", "warmup_steps": 0})
    return recipe.model_copy(update={"training": loop, "schedule": schedule, "tracker": None})


def _available() -> int | None:
    """Free bytes of the device."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else available()


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
