"""Pipeline with the best linear combination of a run's saved weights (LCSC), by a given metric."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from dinit.cards import CARD
from dinit.files import user_path, whole_folder
from dinit.pipelines.generate import Pipeline
from dinit.pipelines.hub import trained_card
from dinit.targets import check_writable
from dinit.training import randomness
from dinit.training.averaging.combination import Found, Search, combine, saved_weights, search
from dinit.training.build import make_data, make_objective
from dinit.training.network import TrainingNetwork
from dinit.training.run.folder import check_run, read_recipe

Metric = Callable[[Pipeline], float]
"""The lower the better. It must not change the pipeline."""


def combine_run(
    run: str | Path,
    to: str | Path,
    metric: Metric | str = "loss",
    of: str = "ema",
    num_samples: int = 500,
    how: Search | None = None,
) -> Found:
    """Search the best combination, and write the run's pipeline to `to` with its weights. Liu et al. 2024.

    run: a folder of `train`. metric: a callable; 'loss' (of `denoising_loss`); a metric of `dinit.evaluation` whose
    low values are good, as 'fid'; or 'module:function'. of: see `saved_weights`. num_samples: images a metric is
    measured on. ValueError for a run with too few saved weights or whose weights are not the pipeline's;
    FileExistsError for a folder that is there.
    """
    run, to = user_path(run), user_path(to)
    if to.exists():
        raise FileExistsError(f"{to} is there already; choose another folder, or remove it")
    check_writable(to.parent)
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    check_run(run)
    files = saved_weights(run, of)
    pipeline = Pipeline.from_pretrained(run / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    measure = make_metric(metric, run, num_samples)

    def scored(coefficients: Tensor) -> float:
        _load(pipeline, combine(files, coefficients))
        return measure(pipeline)

    found = search(scored, len(files), how)
    _load(pipeline, combine(files, found.coefficients))
    facts = json.loads((run / "pipeline" / "training.json").read_text(encoding="utf-8"))
    names = [path.relative_to(run).as_posix() for path in files]
    facts["combination"] = {
        "of": of,
        "metric": metric if isinstance(metric, str) else getattr(metric, "__name__", "a callable"),
        "score": found.score,
        "evaluations": len(found.tried),
        "coefficients": dict(zip(names, found.coefficients.tolist(), strict=True)),
    }
    with whole_folder(to) as temporary:
        (temporary / CARD).write_text(trained_card(pipeline, read_recipe(run), facts), encoding="utf-8")
        pipeline.save_pretrained(temporary)
        (temporary / "recipe.yaml").write_bytes((run / "pipeline" / "recipe.yaml").read_bytes())
        (temporary / "training.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return found


def make_metric(metric: Metric | str, run: Path, num_samples: int) -> Metric:
    """The callable of a metric's name; see `combine_run`. ValueError for an unknown name."""
    if not isinstance(metric, str):
        return metric
    if metric == "loss":
        return denoising_loss(run, num_samples)
    if ":" in metric:
        module, _, function = metric.partition(":")
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"metric {metric!r} cannot be imported: {error}") from error
    from dinit.evaluation.metrics.base import check_metrics  # torch-fidelity is slow to import
    from dinit.pipelines.evaluate import evaluate

    check_metrics([metric])
    data = read_recipe(run).data.spec()

    def measured(pipeline: Pipeline) -> float:
        return evaluate(pipeline, num_samples, dataset_name=data, metrics=[metric]).model.metrics[metric]

    return measured


def denoising_loss(run: Path, num_samples: int, seed: int = 1) -> Metric:
    """The loss of the run's recipe on num_samples of its images, with noise and times that are always the same."""
    recipe = read_recipe(run)
    data, objective = make_data(recipe), make_objective(recipe)
    chosen = [data.sample(index) for index in data.indices(seed, 0, num_samples)]
    x0 = torch.stack([image for image, _ in chosen])
    labels = torch.tensor([label for _, label in chosen], dtype=torch.int64)
    t = objective.times(num_samples, randomness.time_generator(seed, 0))
    eps = randomness.noise(seed, 0, tuple(x0.shape))

    @torch.no_grad()
    def loss(pipeline: Pipeline) -> float:
        network = TrainingNetwork(pipeline.backbone).eval()
        pieces = [slice(start, start + 256) for start in range(0, num_samples, 256)]
        return float(torch.cat([objective.losses(network, x0[p], labels[p], t[p], eps[p]) for p in pieces]).mean())

    return loss


@torch.no_grad()
def _load(pipeline: Pipeline, weights: dict[str, Tensor]) -> None:
    """Puts weights into its network; snapshots hold parameters alone. ValueError where they do not fit."""
    own = dict(pipeline.backbone.state_dict())
    named = {name for name, _ in pipeline.backbone.named_parameters()}
    if not named <= weights.keys() <= own.keys():
        raise ValueError(
            "the saved weights are not those of the pipeline's network; runs with finetune.mode lora or difffit "
            "cannot be combined"
        )
    for name, value in weights.items():
        own[name].copy_(value)
