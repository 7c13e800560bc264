"""Runs of training as pipelines: the finished one, or one of the newest whole checkpoint's averaged weights."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

INDEX = "model_index.json"
RECIPE = "recipe.yaml"
MODEL = "model"
"""Folder of a run: its pipeline without the backbone's weights, which the checkpoints have."""
PIPELINE_FOLDER = "pipeline"
_CHECKPOINTS = "checkpoints"
_WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class SavedStep:
    """A checkpoint with averaged weights that are whole.

    Attributes:
        folder: Of the checkpoint.
        step: Optimiser steps done.
        weights: The file of averaged weights, as the pipeline has them.
    """

    folder: Path
    step: int
    weights: Path


def is_run(folder: Path) -> bool:
    """Whether this is the folder of a training run, rather than of a pipeline."""
    return (folder / RECIPE).is_file() and not (folder / INDEX).exists()


def is_checkpoint(folder: Path) -> bool:
    """Whether this is the folder of a run's checkpoint."""
    return folder.parent.name == _CHECKPOINTS and (folder / "state.json").is_file() and is_run(folder.parent.parent)


def saved_step(folder: Path) -> SavedStep | None:
    """The averaged weights of a checkpoint; None where they, or the record of the step, are not whole."""
    merged = folder / "merged.safetensors"  # of fine-tuning that adds weights: these are in the others here
    weights = merged if merged.exists() else folder / "ema.safetensors"
    try:
        step = json.loads((folder / "state.json").read_text(encoding="utf-8"))["step"]
        with safe_open(weights, "np") as opened:
            next(iter(opened.keys()), None)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
    return SavedStep(folder, int(step), weights)


def newest_step(run: Path) -> SavedStep | None:
    """The newest whole checkpoint of a run; None where there is none."""
    for folder in sorted((run / _CHECKPOINTS).glob("step-*"), reverse=True):
        if (found := saved_step(folder)) is not None:
            return found
    return None


def pipeline_of_run(folder: Path) -> Path:
    """The folder of a run's pipeline.

    The finished one, unless a checkpoint has more steps; then, or where there is none yet, one of the newest whole
    checkpoint's averaged weights, in a temporary folder that exists until this process ends. A warning names the
    step that a run stands for.

    Args:
        folder: Of a run, or of one of its checkpoints.

    Returns:
        A pipeline's folder.

    Raises:
        FileNotFoundError: The run has neither pipeline nor checkpoint.
        ValueError: The checkpoint is damaged, or the run was begun by a dinit that did not write its `model`.
    """
    if is_checkpoint(folder):
        found = saved_step(folder)
        if found is None:
            raise ValueError(
                f"the checkpoint {folder} is damaged or incomplete; give another one, or the run's folder"
            )
        return _assembled(folder.parent.parent, found)
    newest, finished = newest_step(folder), folder / PIPELINE_FOLDER
    if (finished / INDEX).is_file() and (newest is None or newest.step <= _steps_of(finished)):
        return finished
    if newest is None:
        raise FileNotFoundError(
            f"the run in {folder} has no pipeline and no checkpoint yet: wait for the first checkpoint, or start "
            f"it again with `dinit train {folder}`"
        )
    made = _assembled(folder, newest)
    warnings.warn(f"{folder} is not finished: this is step {newest.step:,}, with averaged weights", stacklevel=2)
    return made


def origin(folder: Path) -> Path | None:
    """The checkpoint of which a temporary pipeline was made; None for any other folder."""
    return next((checkpoint for checkpoint, made in _made.items() if made == folder), None)


_made: dict[Path, Path] = {}


def _assembled(run: Path, saved: SavedStep) -> Path:
    if saved.folder in _made:
        return _made[saved.folder]
    if not (run / MODEL / INDEX).is_file():
        raise ValueError(
            f"the run in {run} has no pipeline yet, and its folder {MODEL}/ is missing, which an older dinit did "
            f"not write: go on with `dinit train {run}`, which writes it"
        )
    target = Path(tempfile.mkdtemp(prefix="dinit-run-"))
    atexit.register(shutil.rmtree, target, ignore_errors=True)
    shutil.copytree(run / MODEL, target, dirs_exist_ok=True)
    shutil.copyfile(run / RECIPE, target / RECIPE)
    place = target / "backbone" / _WEIGHTS
    try:
        os.link(saved.weights, place)  # stays, where the run removes the checkpoint meanwhile
    except OSError:  # another disk
        shutil.copyfile(saved.weights, place)
    _made[saved.folder] = target
    return target


def _steps_of(pipeline: Path) -> int:
    try:
        return int(json.loads((pipeline / "training.json").read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
