"""Evaluate a pipeline: generate class-balanced samples, measure them, write the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from dinit.data import DATASETS, ImageData
from dinit.evaluation.evaluate import evaluate_images
from dinit.evaluation.features import EXTRACTORS, Extractor
from dinit.evaluation.metrics import METRICS, MIN_IMAGES, check_metrics
from dinit.evaluation.report import Report

_IMAGES_PER_CALL = 1000  # of a pipeline: 50,000 float images at once would not fit in memory


class Generates(Protocol):
    """What `evaluate` needs of a pipeline. `.images` is (B, C, H, W) float in [0, 1], diffusers' "pt"."""

    def __call__(self, labels: Any, *, seed: int, output_type: str, **call: Any) -> Any: ...


def evaluate(
    pipeline: Generates | str | Path,
    num_samples: int = 1000,
    *,
    dataset_name: str | Mapping[str, Any] | ImageData = "digits",
    features: str | Mapping[str, Any] | Extractor = "digits-classifier",
    metrics: Sequence[str] = METRICS,
    seed: int = 0,
    output: str | Path | None = None,
    cuda: bool | None = None,
    **call: Any,
) -> Report:
    """Generates num_samples images, as many of every class, and measures them against the data set.

    pipeline: a pipeline, or a name or folder for `Pipeline.from_pretrained`. call: options of the pipeline's
    call (sampler, steps, guidance, batch_size, …), kept in the report. output: where to write the report, a
    .json file. dataset_name, features, metrics, cuda: see `dinit.evaluation.evaluate_images`.
    ValueError for fewer than 8 samples and for what the pipeline or the metrics refuse, before anything
    is generated where that can be known.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < MIN_IMAGES:
        raise ValueError(f"num_samples must be a whole number >= {MIN_IMAGES}, got {num_samples!r}")
    check_metrics(metrics)
    destination = None if output is None else _destination(Path(output))
    dataset = DATASETS.create(dataset_name)
    extractor: Extractor = EXTRACTORS.create(features)
    extractor.weights_path()
    name, pipe = _open(pipeline)
    labels = balanced_labels(num_samples, dataset.num_classes)
    images = generate(pipe, labels, seed, **call)
    report = evaluate_images(
        images,
        labels if dataset.num_classes else None,
        dataset_name,
        extractor,
        metrics,
        seed=seed,
        name=name,
        cuda=cuda,
        made_by={"pipeline": name, "seed": seed, **{key: _plain(value) for key, value in call.items()}},
    )
    if destination is not None:
        report.write_json(destination)
    return report


def balanced_labels(count: int, num_classes: int) -> Tensor:
    """0, 1, …, num_classes - 1, 0, 1, …: (count,) int64, as many of each as can be. All 0 without classes."""
    return torch.arange(count) % max(num_classes, 1)


def generate(pipe: Generates, labels: Tensor, seed: int, **call: Any) -> Tensor:
    """The pipeline's images for the labels, (N, C, H, W) uint8. ValueError where it gives something else.

    Call k starts at image 1000·k and gets the seed `seed + 1000·k`: no two calls share their noise.
    """
    pieces = []
    for start in range(0, len(labels), _IMAGES_PER_CALL):
        asked = labels[start : start + _IMAGES_PER_CALL]
        images = pipe(asked.tolist(), seed=seed + start, output_type="pt", **call).images
        if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != len(asked):
            shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
            raise ValueError(f"the pipeline should give ({len(asked)}, C, H, W) for 'pt', got {shape}")
        if not bool(torch.isfinite(images).all()):
            raise ValueError("the pipeline gave NaN or infinity; its sampler and model do not fit together")
        pieces.append((images.detach().float().cpu() * 255).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(pieces)


def _open(pipeline: Generates | str | Path) -> tuple[str, Generates]:
    if not isinstance(pipeline, str | Path):
        return type(pipeline).__name__, pipeline
    from dinit.pipelines.generate import Pipeline

    return str(pipeline), Pipeline.from_pretrained(str(pipeline))


def _destination(path: Path) -> Path:
    """`path`, whose folder exists from now on: an hour of sampling should not end at a missing folder."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; the report needs a file name, such as {path / 'report.json'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path.parent} cannot be made ({error.strerror}); choose another output") from error
    return path


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)
