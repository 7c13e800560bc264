"""Features for an evaluation that names none: the classifier of the data, else published ones, else none."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dinit.data import DATASETS, ImageData
from dinit.evaluation.classifier_training import data_name
from dinit.evaluation.evaluate import EvaluationSpec
from dinit.evaluation.features.inception import Inception
from dinit.evaluation.features.nothing import NoFeatures
from dinit.evaluation.features.trained_classifier import KIND, of_data
from dinit.evaluation.metrics.base import DEFAULT_METRICS
from dinit.evaluation.real_images import has_splits
from dinit.files import user_path

OWN_METRICS = ("class-accuracy", "fid", "precision", "recall", "cafd", "memorisation", "pixels")
WITHOUT_FEATURES = ("memorisation", "pixels")
_PUBLISHED = "inception-v3"  # the features of data sets that have none of their own
_USUAL, _FEWEST, _PATIENCE, _TRIED = 1000, 200, 600, 8  # images; seconds that generating them may take
_MOST = 3e11  # products of pixels up to which nearest training images are sought by default


def usual_features(
    spec: EvaluationSpec, count: int, places: Sequence[Path] = (), what: str = "RUN"
) -> tuple[EvaluationSpec, list[str]]:
    """The spec with features and metrics filled in, where it names neither features, protocol nor reference.

    A classifier of the data gives class accuracy, FID, precision, recall, distances within classes, memorisation
    and pixel statistics. Without it, and without the published Inception weights, metrics that need no features are
    left.

    Args:
        spec: of the evaluation.
        count: number of samples.
        places: folders where the data's own classifier may be, as of its run.
        what: what `dinit classifier` needs, for the note.

    Returns:
        The spec and notes for the report.

    Raises:
        ValueError: what the data set refuses.
    """
    if spec.features is not None or spec.protocol is not None or spec.reference is not None:
        return spec, []
    given, data = spec.data, DATASETS.create(spec.data)
    if not has_splits(given):
        spec = replace(spec, dataset_name=data)  # a folder's pictures are decoded once
    own = data.features != _PUBLISHED
    name = data_name(given) if isinstance(given, Mapping) else str(given) if isinstance(given, str) else ""
    found = of_data(data, name, places, elsewhere=not own)
    if found is not None:
        return replace(spec, features=found, metrics=_chosen(spec, data, count, OWN_METRICS)), []
    if own or _has_inception():
        return spec, []
    free = set(spec.metrics) <= {*WITHOUT_FEATURES, "cmmd", "fdd"}
    if tuple(spec.metrics) != DEFAULT_METRICS and not free:
        return spec, []  # the error about Inception's weights names what there is in their place
    note = (
        f"no features: FID and class accuracy need a classifier of these classes; `dinit classifier {what}` trains "
        "one in minutes, and is found from then on"
    )
    if data.num_classes < 2:
        note = "no features: with fewer than two classes there is no classifier, and FID needs published weights"
    return replace(spec, features=NoFeatures(), metrics=_chosen(spec, data, count, WITHOUT_FEATURES)), [note]


def _chosen(spec: EvaluationSpec, data: ImageData, count: int, usual: Sequence[str]) -> Sequence[str]:
    """The spec's metrics, or the usual ones where it has the default; no long search unless it was named."""
    if tuple(spec.metrics) != DEFAULT_METRICS:
        return spec.metrics
    work = float(len(data)) * count * data.channels * data.image_size**2
    return [name for name in usual if name != "memorisation" or work <= _MOST]


def classifier_places(pipeline: str | Path | None) -> list[Path]:
    """Folders where the classifier of a run may be, by the run's folder, its pipeline's or a checkpoint's."""
    if pipeline is None or not user_path(pipeline).is_dir():
        return []
    folder = user_path(pipeline).resolve()
    return [one / KIND for one in (folder, folder.parent, folder.parent.parent) if (one / "recipe.yaml").is_file()]


def usual_count(seconds_per_image: float) -> int:
    """Number of images where none is given: 1,000, or as many hundreds as fit in ten minutes, from 200 on.

    Args:
        seconds_per_image: of the generation.
    """
    fitting = int(_PATIENCE / max(seconds_per_image, 1e-9)) // 100 * 100
    return max(_FEWEST, min(_USUAL, fitting))


def seconds_per_image(pipe: Any, seed: int, **call: Any) -> float:
    """Time of an image by a pipeline's call, measured on one batch of 8 after a shorter one.

    Args:
        pipe: the pipeline.
        seed: of the images.
        call: options of its call.
    """
    classes = pipe.backbone.num_classes
    began = 0.0
    for count in (1, _TRIED):
        labels = torch.arange(count) % classes if classes else None
        began = time.perf_counter()
        pipe(labels, num_images=count, seed=seed, start_index=0, output_type="pt", **call)
    return (time.perf_counter() - began) / _TRIED


def _has_inception() -> bool:
    try:
        Inception().weights_path()
    except ValueError:
        return False
    return True
