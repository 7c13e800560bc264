"""Training of a recipe to a pipeline folder."""

from __future__ import annotations

import json
import os
import time
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from dinit.arguments import shown
from dinit.cards import CARD
from dinit.checkpoints.runs import MODEL
from dinit.devices import choose_device
from dinit.files import only_writer, user_path
from dinit.pipelines.hub import adapter_card
from dinit.pipelines.launch import training_processes
from dinit.pipelines.runs.output import draw_samples, export, make_pipeline, write_model
from dinit.training.finetune.adapters import save_adapter
from dinit.training.recipe.model import Recipe
from dinit.training.run.divergence import TrainingDiverged
from dinit.training.run.folder import check_run_folder, pipeline_steps
from dinit.training.run.health import append_line, data_statistics
from dinit.training.run.stopping import TrainingStopped
from dinit.training.step import OnStep, TrainingLoop


@dataclass(frozen=True)
class TrainResult:
    """The result of a training run.

    Attributes:
        folder: Of the run.
        pipeline: Folder of the trained pipeline.
        steps: Optimiser steps.
        final_loss: Mean loss of the last 100 steps or fewer.
        seconds: Spent training, over all sessions.
    """

    folder: Path
    pipeline: Path
    steps: int
    final_loss: float
    seconds: float


def train(
    recipe: Recipe,
    out: str | Path,
    resume: bool = True,
    progress: bool = True,
    profile: bool = False,
    on_step: OnStep | None = None,
    extend: int | None = None,
) -> TrainResult:
    """Train a recipe and write its pipeline; a stopped run is resumed, and a finished one goes on with `extend`.

    On one CPU, with one number of threads, the losses are the same, bit for bit, however often a run is stopped. A
    step whose gradient is not finite is skipped and written to skipped.jsonl. The folder gets recipe.yaml,
    data.json, losses.jsonl, health.jsonl and .html, events.jsonl, model/, checkpoints/, samples/, the tracker's
    logs/ and pipeline/.

    Args:
        recipe: What is trained; of `load_recipe` or `parse_recipe`.
        out: A new or empty folder, or one that this recipe has begun.
        resume: Go on from the newest checkpoint in `out`; False refuses a folder that has one.
        progress: Show a progress bar, or a line at intervals.
        profile: Show the time of each part of a step, and write it to profile.json.
        on_step: Called after every optimiser step with the `TrainingLoop` and the `StepResult`, in every process.
        extend: A new, larger total of optimiser steps for the run in `out`. Weights, averages, optimiser and data
            order go on as they were; each further step has the learning rate of a run of the new total, which is
            the same for a constant schedule. The change is recorded in the run's recipe, so that later calls need
            no `extend`.

    Returns:
        Where the run and its pipeline are, and how it went. A finished run is not trained again. One whose recipe
        now has fewer `training.steps` ends there, or after the steps that are done.

    Raises:
        RunFolderError: `out` holds something else, or no run that can be extended (a ValueError); nothing is
            overwritten.
        ValueError: Settings that this machine cannot run.
        TrainingDiverged: `training.max_skipped` consecutive steps had no finite gradient.
        TrainingStopped: SIGTERM or Ctrl-C was received; everything is saved.
        OSError: The disk is full, another process trains into `out`, or a process of this run has died or hangs
            (a ConnectionError). The last complete checkpoint is kept, and the same call continues from it.
    """
    if not isinstance(recipe, Recipe):
        raise ValueError(f"recipe must be a Recipe, as load_recipe reads it from a file; got {shown(recipe)}")
    out = user_path(out)
    plan = check_run_folder(out, recipe, resume, extend)
    recipe = plan.recipe
    if progress and os.environ.get("RANK", "0") == "0":
        for line in plan.lines:
            Console(stderr=True).print(f"{out}: {line}", markup=False, highlight=False, soft_wrap=True)
    finished = _finished(out, recipe)
    if finished is not None:
        return finished
    if recipe.training.device != "auto":
        choose_device(recipe.training.device)
    out.mkdir(parents=True, exist_ok=True)
    with training_processes(recipe, out) as accelerator:
        devices = [accelerator.device] if accelerator.device.type == "cuda" else []
        alone = only_writer(out) if accelerator.is_main_process else nullcontext()
        with alone, torch.random.fork_rng(devices):  # the caller's random numbers are not ours to change
            _train(recipe, out, accelerator, progress, profile, on_step)
    result = _finished(out, recipe)
    assert result is not None, "the pipeline was just written"
    return result


def _train(
    recipe: Recipe, out: Path, accelerator: Accelerator, progress: bool, profile: bool, on_step: OnStep | None
) -> None:
    """Train to the pipeline. A function of its own, so that after an exception no frame of ours holds the loop."""
    loop = TrainingLoop(
        recipe,
        out,
        accelerator,
        progress=progress,
        profile=profile,
        on_step=on_step,
        preview=_Preview(),
        evaluate=_evaluation(recipe, out) if accelerator.is_main_process else None,
        begin=lambda loop: write_model(loop.out / MODEL, loop.recipe, loop.objective, loop.data),
    )
    try:
        loop.run()
        network = loop.averaged()
        if loop.main:
            _export(loop, network)
            _end(loop, "finished")
        accelerator.wait_for_everyone()
    except BaseException as error:
        if loop.main and loop.begun:
            with suppress(OSError):  # the disk may be full: the reason for the end is the error itself
                _end(loop, _state(error), str(error))
        raise
    finally:
        loop.close()  # a hook of the caller may hold the loop


def _state(error: BaseException) -> str:
    if isinstance(error, TrainingDiverged):
        return "diverged"
    return "stopped" if isinstance(error, TrainingStopped | KeyboardInterrupt) else "failed"


def _end(loop: TrainingLoop, state: str, reason: str = "") -> None:
    """The end of a session, to events.jsonl and health.html."""
    loop.note({"state": state, "reason": reason, "ended": round(time.time(), 1)})
    loop.page.write(now=True)


class _Preview:
    """Write samples/step-XXXXXXXX-ema.png, always from the same noise, and the statistics of its pixels."""

    def __init__(self) -> None:
        self._of_data: dict[str, float] | None = None  # read at the first preview

    def __call__(self, loop: TrainingLoop, network: Any) -> None:
        pipeline = make_pipeline(network, loop.recipe, loop.objective, loop.data, loop.accelerator.device)
        target = loop.out / "samples" / f"step-{loop.step:08d}-ema.png"
        title = f"{loop.recipe.name}, step {loop.step:,}, averaged weights"
        made = draw_samples(pipeline, loop.recipe.seed, target, title)
        self._of_data = self._of_data or data_statistics(loop.data)
        append_line(loop.out / "health.jsonl", {"step": loop.step, "samples": made, "data": self._of_data})
        if loop.recipe.tracker:
            loop.accelerator.log({f"samples/{key}": value for key, value in made.items()}, step=loop.step)


def _evaluation(recipe: Recipe, out: Path) -> Any:
    """Scores the averaged weights, to evaluations.jsonl and the tracker; None where the recipe evaluates
    nothing."""
    if not recipe.evaluation.every:
        return None
    from dinit.pipelines.runs.watch import Evaluations  # torch-fidelity is slow to import

    evaluations = Evaluations.of(recipe, out)

    def evaluate(loop: TrainingLoop, network: Any) -> None:
        pipeline = make_pipeline(network, loop.recipe, loop.objective, loop.data, loop.accelerator.device)
        loop.accelerator.log(evaluations.figures(pipeline, loop.step), step=loop.step)

    return evaluate


def _export(loop: TrainingLoop, network: Any) -> None:
    facts = {
        "seconds": round(loop.seconds, 2),
        "final_loss": loop.final_loss,
        "skipped_steps": loop.skips.total,
        "device": str(loop.accelerator.device),
        "processes": loop.accelerator.num_processes,
        **({"finetune": asdict(loop.transfer[0])} if loop.transfer else {}),
    }
    if save_adapter(network, loop.out / "adapter"):
        (loop.out / "adapter" / CARD).write_text(adapter_card(loop.recipe), encoding="utf-8")
    pipeline = make_pipeline(network, loop.recipe, loop.objective, loop.data, loop.accelerator.device)
    export(loop.out / "pipeline", pipeline, loop.recipe, loop.data, facts)


def _finished(out: Path, recipe: Recipe) -> TrainResult | None:
    """The result of a run that has its pipeline; None where it has none, or one of fewer steps."""
    if (pipeline_steps(out) or 0) < recipe.training.steps:
        return None
    facts = json.loads((out / "pipeline" / "training.json").read_text(encoding="utf-8"))
    return TrainResult(out, out / "pipeline", facts["steps"], facts["final_loss"], facts["seconds"])
