"""Metrics: the registry and its inputs, and FID, sFID, KID, Inception score and class accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from dinit.compat import ensure_torchvision

ensure_torchvision()  # before torch_fidelity, which imports torchvision

import torch_fidelity  # noqa: E402
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_kid import kid_features_to_metric  # noqa: E402

from dinit.evaluation.features.base import Extractor  # noqa: E402
from dinit.evaluation.image_features import ImageFeatures, ImageSource, extract  # noqa: E402
from dinit.evaluation.metrics.frechet import frechet_distance, self_test  # noqa: E402
from dinit.registry import Registry, suggest  # noqa: E402

T = TypeVar("T")
METRICS: Registry[Callable[[MetricInputs], dict[str, float]]] = Registry("metric", "dinit.evaluation.metrics")
DEFAULT_METRICS = ("fid", "kid", "precision", "recall", "inception-score", "class-accuracy")
MIN_IMAGES = 8
_FULL = 1000  # images that the usual KID subsets and Inception-score splits need


class NotMeasured(Exception):
    """A metric cannot be measured on these sets; the message has the reason, and what to do."""


@dataclass(frozen=True)
class Settings:
    """Settings of the metrics, equal for every row of a report.

    Attributes:
        kid_subset_size: images of a subset for KID.
        kid_subsets: number of subsets for KID.
        isc_splits: number of splits for the Inception score.
        prc_neighborhood: k of the k-th nearest neighbour, for precision and recall.
        seed: of subsets and shuffles.
        isc_shuffle: whether images are shuffled before they are split.
    """

    kid_subset_size: int
    kid_subsets: int
    isc_splits: int
    prc_neighborhood: int
    seed: int
    isc_shuffle: bool = True

    @classmethod
    def for_counts(cls, counts: Sequence[int], seed: int) -> Settings:
        """Usual settings (KID: 100 subsets of 1,000; Inception score: 10 splits), smaller below 1,000 images.

        ValueError for a set of fewer than 8 images.
        """
        smallest = min(counts)
        if smallest < MIN_IMAGES:
            raise ValueError(f"metrics need at least {MIN_IMAGES} images in each set, got {smallest}")
        small = smallest < _FULL
        # Half of the set: subsets nearly as large as the set would all be nearly the same.
        return cls(smallest // 2 if small else _FULL, 100, 1 if small else 10, 3, seed)


@dataclass(frozen=True)
class MetricInputs:
    """Inputs of a metric: two sets to compare, and what else it may use.

    Attributes:
        samples: the set that is measured.
        reference: the set that it is compared with.
        extractor: of the features of both.
        settings: see `Settings`.
        knows_classes: whether the extractor's labels are those of the samples.
        train: gives the training images, where they are known; none of them is a real image of the report.
        trained_on: gives all images that the model was trained on, where these are more than `train`.
        encoders: by metric, extractors of metrics that have their own.
        cuda: see `extract`.
        evidence: by name, pictures and counts that a metric leaves for the page of a report.
        shared: what all rows of a report may reuse.
        of_real: whether this is the row of real images.
    """

    samples: ImageFeatures
    reference: ImageFeatures
    extractor: Extractor
    settings: Settings
    knows_classes: bool = False
    train: Callable[[], ImageSource] | None = None
    trained_on: Callable[[], ImageSource] | None = None
    encoders: Mapping[str, Any] = field(default_factory=dict)
    cuda: bool | None = None
    evidence: dict[str, Any] = field(default_factory=dict)
    shared: dict[Any, Any] = field(default_factory=dict)
    of_real: bool = False
    _own: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, compute: Callable[[], T]) -> T:
        """Result of `compute`, computed once under this name for these inputs."""
        if name not in self._own:
            self._own[name] = compute()
        return self._own[name]


def check_metrics(metrics: Sequence[str]) -> None:
    """ValueError for an unknown metric (with the nearest known), or an empty list."""
    if isinstance(metrics, str) or not metrics:
        raise ValueError(f"metrics must be a list of names out of {', '.join(METRICS)}, got {metrics!r}")
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"unknown metric {name!r}{suggest(str(name), METRICS.names())}")


def measure_inputs(inputs: MetricInputs, metrics: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """Scores in the order of `metrics`, and a line with the reason for each metric that could not be measured."""
    scores: dict[str, float] = {}
    missing: list[str] = []
    for name in metrics:
        try:
            scores.update(METRICS[name](inputs))
        except NotMeasured as reason:
            missing.append(f"{name}: not measured, {reason}")
    return scores, missing


def measure(
    samples: Tensor,
    reference: Tensor,
    extractor: Extractor,
    settings: Settings,
    metrics: Sequence[str],
    cuda: bool | None = None,
) -> dict[str, float]:
    """Scores of `samples` against `reference`, both (N, C, H, W) uint8; metrics that need more are left out.

    cuda: whether to extract features on a GPU; None is a GPU if there is one.
    """
    spatial = "sfid" in metrics
    ours, theirs = (extract(images, extractor, spatial=spatial, cuda=cuda) for images in (samples, reference))
    return measure_inputs(MetricInputs(ours, theirs, extractor, settings, cuda=cuda), metrics)[0]


@METRICS.register("fid")
def fid(inputs: MetricInputs) -> dict[str, float]:
    """Fréchet distance of the pooled features. Heusel et al. 2017."""
    self_test()
    ours, theirs = inputs.samples.gaussian, inputs.reference.gaussian
    if ours is None:
        raise NotMeasured("there are no features")
    if theirs is None:
        raise NotMeasured("the reference has neither features nor statistics")
    return {"fid": frechet_distance(ours, theirs)}


@METRICS.register("sfid")
def sfid(inputs: MetricInputs) -> dict[str, float]:
    """Fréchet distance of spatial features. Nash et al. 2021."""
    self_test()
    if inputs.samples.spatial is None:
        raise NotMeasured("this extractor gives no spatial features")
    if inputs.reference.spatial is None:
        raise NotMeasured("the reference holds no statistics of spatial features (mu_s, sigma_s)")
    return {"sfid": frechet_distance(inputs.samples.spatial, inputs.reference.spatial)}


@METRICS.register("kid")
def kid(inputs: MetricInputs) -> dict[str, float]:
    """Unbiased squared MMD, cubic kernel, over subsets, by torch-fidelity. Bińkowski et al. 2018."""
    ours, theirs, settings = inputs.samples.pooled, inputs.reference.pooled, inputs.settings
    if ours is None or theirs is None:
        raise NotMeasured("the reference holds statistics alone; KID needs its images or features")
    found = kid_features_to_metric(
        torch.from_numpy(ours),
        torch.from_numpy(theirs),
        kid_subsets=settings.kid_subsets,
        kid_subset_size=settings.kid_subset_size,
        rng_seed=settings.seed,
        verbose=False,
    )
    return {
        "kid": found[torch_fidelity.KEY_METRIC_KID_MEAN],
        "kid_std": found[torch_fidelity.KEY_METRIC_KID_STD],
    }


@METRICS.register("inception-score")
def inception_score(inputs: MetricInputs) -> dict[str, float]:
    """Exponential of the mutual information of image and class, by torch-fidelity. Salimans et al. 2016."""
    if inputs.samples.logits is None:
        raise NotMeasured("this extractor gives no logits of classes")
    settings = inputs.settings
    logits = torch.from_numpy(inputs.samples.logits)
    found = isc_features_to_metric(logits, settings.isc_splits, settings.isc_shuffle, settings.seed)
    scores = {"inception_score": found[torch_fidelity.KEY_METRIC_ISC_MEAN]}
    if settings.isc_splits > 1:  # one split has no spread
        scores["inception_score_std"] = found[torch_fidelity.KEY_METRIC_ISC_STD]
    return scores


def classified_as_labelled(inputs: MetricInputs) -> np.ndarray:
    """Whether each sample is classified as its label, (N,) bool. NotMeasured without labels or a classifier."""
    samples = inputs.samples
    if samples.labels is None:
        raise NotMeasured("no labels were given")
    if not inputs.knows_classes or samples.images is None:
        raise NotMeasured("this extractor reads no classes of the data set")
    pieces = [inputs.extractor.read_labels(samples.images[i : i + 512]) for i in range(0, samples.count, 512)]
    if any(piece is None for piece in pieces):
        raise NotMeasured("this extractor reads no classes of the data set")
    return torch.cat([piece for piece in pieces if piece is not None]).numpy() == samples.labels


@METRICS.register("class-accuracy")
def class_accuracy(inputs: MetricInputs) -> dict[str, float]:
    """Share of samples that the extractor's classifier assigns to their label."""
    return {"class_accuracy": float(inputs.once("correct", lambda: classified_as_labelled(inputs)).mean())}
