"""Scores during training: of the averaged weights, from within the run or from another process."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinit.evaluation.evaluate import EvaluationSpec, Evaluator
from dinit.evaluation.features.trained_classifier import KIND
from dinit.evaluation.protocols import PROTOCOLS
from dinit.evaluation.reports.report import Report
from dinit.files import is_held, user_path, write_atomically
from dinit.pipelines.evaluate import draw_labels, generate
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.measuring import usual_features
from dinit.pipelines.runs.output import make_pipeline
from dinit.training.build import make_backbone, make_data, make_objective
from dinit.training.recipe.model import Recipe
from dinit.training.run.checkpoint import Checkpoint, list_checkpoints, load_checkpoint
from dinit.training.run.folder import check_run, read_recipe

LOG = "evaluations.jsonl"


class Evaluations:
    """Scores of one run at several steps. Real images are read and measured once, here.

    out: the run's folder, whose evaluations.jsonl gets a line a step. options: fields of an `EvaluationSpec`, in
    place of the recipe's. ValueError for what `EvaluationSpec` and `Evaluator` refuse.
    """

    def __init__(self, recipe: Recipe, out: Path, num_samples: int, **options: Any) -> None:
        self.recipe, self.out, self.count = recipe, out, num_samples
        data = {key: value for key, value in recipe.data.spec().items() if key != "split"}
        spec = EvaluationSpec(**{"dataset_name": data, "seed": recipe.seed, **options})
        spec, _ = usual_features(spec, num_samples, [out / KIND], str(out))
        with untouched_randomness():
            self.evaluator = Evaluator(spec, num_samples)
            _ = self.evaluator.reference_set

    @classmethod
    def of(cls, recipe: Recipe, out: Path, **options: Any) -> Evaluations:
        """By the recipe's section `evaluation`, except for `options` that are not None."""
        section = recipe.evaluation
        settings = {
            "num_samples": section.num_samples,
            "metrics": section.metrics,
            "protocol": section.protocol,
            "reference": section.reference,
            "dataset_name": None if section.data is None else section.data.spec(),
        }
        settings |= {key: value for key, value in options.items() if value is not None}
        return cls(recipe, out, **{key: value for key, value in settings.items() if value is not None})

    def figures(self, pipeline: Pipeline, step: int) -> dict[str, float]:
        """The figures of `measure`, named for a tracker."""
        return {f"evaluation/{key}": value for key, value in self.measure(pipeline, step).model.metrics.items()}

    def measure(self, pipeline: Pipeline, step: int) -> Report:
        """The report of the pipeline as it is after `step` steps, and its line in evaluations.jsonl.

        Neither weights nor random numbers of the run are touched; images are those of the recipe's seed at every
        step.
        """
        began = time.monotonic()
        named, seed = self.evaluator.named, self.recipe.seed
        labels = draw_labels(named, self.count, pipeline.backbone.num_classes, seed)
        with untouched_randomness():
            sampled = generate(pipeline, self.count, labels, seed)
            made_by = {"run": self.recipe.name, "step": step, "weights": "ema", "nfe": sampled.nfe, "seed": seed}
            sampling = named.labels if labels is not None and named.name in PROTOCOLS else None
            report = self.evaluator.report(sampled.images, labels, f"step {step}", made_by, sampling)
        self._log(report, step, time.monotonic() - began)
        return report

    def _log(self, report: Report, step: int, seconds: float) -> None:
        line = {
            "step": step,
            "images": step * self.recipe.training.batch_size,
            "protocol": report.protocol.name,
            "samples": report.model.count,
            "metrics": dict(report.model.metrics),
            "real": dict(report.real.metrics) if report.has_real else None,
            "warnings": list(report.warnings),
            "seconds": round(seconds, 2),
        }
        before = [one for one in read_evaluations(self.out) if one["step"] < step]  # a run that went back goes on
        text = "".join(json.dumps(one) + "\n" for one in (*before, line))
        write_atomically(self.out / LOG, text)


def read_evaluations(out: Path) -> list[dict[str, Any]]:
    """The lines of a run's evaluations.jsonl, in the order of steps; none where there is no file."""
    path = out / LOG
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@contextmanager
def untouched_randomness() -> Iterator[None]:
    """Puts the global generators of Python, numpy and torch (all devices) back as they were."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002 (others may draw from it)
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002


def watch(
    run: str | Path,
    *,
    poll_seconds: float = 10.0,
    patience_seconds: float = 3600.0,
    device: str | None = None,
    **options: Any,
) -> Iterator[tuple[int, Report]]:
    """Measures each new checkpoint of a run as (step, report), from another process, until the run has its
    pipeline.

    The newest checkpoint is taken each time: where measuring takes longer than the run needs for the next one,
    those between are left out, as are steps that are in evaluations.jsonl.

    Args:
        run: The run's folder.
        poll_seconds: Between two reads of the folder.
        patience_seconds: How long to wait for a checkpoint of a run that no process trains.
        device: None is a GPU if there is one.
        options: num_samples and fields of an `EvaluationSpec`, in place of the recipe's section `evaluation`.

    Yields:
        A step and its report.

    Raises:
        ValueError: For a folder without a run.
        TimeoutError: No process trains the run any more, and it has no pipeline.
    """
    run = user_path(run)
    check_run(run)
    recipe = read_recipe(run)
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    evaluations = Evaluations.of(recipe, run, **{"cuda": place.type == "cuda", **options})
    done = {line["step"] for line in read_evaluations(run)}
    since = time.monotonic()  # the last sign of life
    while True:
        finished = (run / "pipeline" / "training.json").is_file()
        checkpoint = _newest(run, done)
        if checkpoint is not None:
            done.add(checkpoint.step)
            pipeline = pipeline_of(recipe, checkpoint, place)
            yield checkpoint.step, evaluations.measure(pipeline, checkpoint.step)
            since = time.monotonic()
        elif finished:
            return
        elif time.monotonic() - since < patience_seconds:
            time.sleep(poll_seconds)
        elif is_held(run):
            since = time.monotonic()
        else:
            raise TimeoutError(
                f"{run} has no pipeline, no new checkpoint for {patience_seconds / 60:.0f} minutes, and no process "
                "trains into it; start `dinit train` again, which continues from the last checkpoint, then watch"
            )


def _newest(run: Path, done: set[int]) -> Checkpoint | None:
    """The newest whole checkpoint whose step is not done yet."""
    for path in reversed(list_checkpoints(run / "checkpoints")):
        if int(path.name.removeprefix("step-")) in done:
            return None
        try:
            return load_checkpoint(path)
        except ValueError:  # the run has removed it meanwhile, or it is damaged
            continue
    return None


def pipeline_of(recipe: Recipe, checkpoint: Checkpoint, device: torch.device) -> Pipeline:
    """The pipeline of a checkpoint's averaged weights, as `dinit train` would write it."""
    data = make_data(recipe)
    backbone: Any = make_backbone(recipe, data)
    backbone.load_state_dict(checkpoint.ema)
    network = backbone.to(device).eval().requires_grad_(False)
    return make_pipeline(network, recipe, make_objective(recipe), data, device)
