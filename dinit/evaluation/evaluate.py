"""Evaluation of a set of images: its report, with real images measured the same way as the baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinit.data import DATASETS, ImageData
from dinit.evaluation.features.base import EXTRACTORS, Extractor
from dinit.evaluation.features.image_classifier import POOR
from dinit.evaluation.features.nothing import NoFeatures
from dinit.evaluation.features.trained_classifier import (
    KIND,
    TrainedExtractor,
    by_protocol,
    check_fits,
    resolved,
)
from dinit.evaluation.image_features import ImageFeatures, ImageSource, extract
from dinit.evaluation.metrics.base import (
    DEFAULT_METRICS,
    MIN_IMAGES,
    MetricInputs,
    Settings,
    check_metrics,
    measure_inputs,
)
from dinit.evaluation.metrics.embedding_distances import CallableExtractor
from dinit.evaluation.protocols import NamedProtocol, choose_protocol
from dinit.evaluation.real_images import has_splits, real_images
from dinit.evaluation.reference import Reference, load_reference
from dinit.evaluation.reports.report import REAL, Protocol, Report, Row
from dinit.evaluation.resampling import MIN_RESAMPLINGS, fid_curve, intervals
from dinit.evaluation.sanity_checks import uneven
from dinit.progress import stage

_STATISTICS = "mean and unbiased covariance; KID: unbiased MMD², cubic kernel"


@dataclass(frozen=True)
class ReportOptions:
    """Options of a report beyond its scores.

    Attributes:
        bootstrap: number of resamplings for 95 % intervals, at least 20; 0 is none.
        curve: whether to measure FID against the number of samples.
        encoders: by metric, extractors or functions of (B, C, H, W) uint8 images, for metrics that have their own
            ("cmmd", "fdd").

    Raises:
        ValueError: fewer than 20 resamplings.
    """

    bootstrap: int = 0
    curve: bool = False
    encoders: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.bootstrap and self.bootstrap < MIN_RESAMPLINGS:
            raise ValueError(f"intervals need at least {MIN_RESAMPLINGS} resamplings, got {self.bootstrap}")


@dataclass(frozen=True)
class EvaluationSpec:
    """Everything that decides how a set of samples is measured, validated as far as that needs no file.

    Attributes:
        dataset_name: data set to compare with: its name, a mapping with options, or an object; None is the digits.
        features: extractor, likewise, or a function of (B, C, H, W) uint8 images to (B, D); None is that of the
            protocol, or else of the data set.
        metrics: names of metrics.
        protocol: name of a protocol; None is the first that uses the features.
        reference: file of reference statistics (`dinit stats`, or the ADM evaluator's) in place of the data set;
            there is no row of real images then.
        report_options: intervals, curves and encoders of the report.
        seed: of subsets, shuffles and the choice of real images.
        cuda: whether to extract features on a GPU; None is a GPU if there is one.

    Raises:
        ValueError: no metrics, or unknown ones.
    """

    dataset_name: str | Mapping[str, Any] | ImageData | None = None
    features: str | Mapping[str, Any] | Extractor | Callable[..., Any] | None = None
    metrics: Sequence[str] = DEFAULT_METRICS
    protocol: str | None = None
    reference: str | Path | None = None
    report_options: ReportOptions | None = None
    seed: int = 0
    cuda: bool | None = None

    def __post_init__(self) -> None:
        check_metrics(self.metrics)

    @property
    def data(self) -> str | Mapping[str, Any] | ImageData:
        """The data set, with its default filled in."""
        return "digits" if self.dataset_name is None else self.dataset_name

    @property
    def options(self) -> ReportOptions:
        """The report's options, with their default filled in."""
        return self.report_options or ReportOptions()


@dataclass(frozen=True)
class ReferenceSet:
    """Set that samples are compared with.

    Attributes:
        featured: its features.
        dataset: name of the data set.
        reference: description for the report.
        class_names: of the data set.
        num_classes: of the data set.
        shape: (C, H, W) that samples must have; None is any that the extractor reads.
        real: features of other real images, for the row of real images.
        train: gives all training images that the real images may be compared with.
        trained_on: gives all images that the model was trained on; None is `train`.
        notes: for the report.
    """

    featured: ImageFeatures
    dataset: str
    reference: str
    class_names: tuple[str, ...]
    num_classes: int
    shape: tuple[int, ...] | None = None
    real: ImageFeatures | None = None
    train: Callable[[], ImageSource] | None = None
    notes: tuple[str, ...] = ()
    trained_on: Callable[[], ImageSource] | None = None


def evaluate_images(
    images: ImageSource,
    labels: Tensor | None = None,
    dataset_name: str | Mapping[str, Any] | ImageData = "digits",
    features: str | Mapping[str, Any] | Extractor | Callable[..., Any] | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    *,
    protocol: str | None = None,
    reference: str | Path | None = None,
    seed: int = 0,
    name: str = "model",
    cuda: bool | None = None,
    made_by: Mapping[str, Any] | None = None,
    label_sampling: str | None = None,
    report_options: ReportOptions | None = None,
) -> Report:
    """Report of a set of images against a data set's test split, with as many train images as the baseline.

    Args:
        images: (N, C, H, W) uint8, or another `ImageSource`; at least 8.
        labels: (N,) int64, the classes that the images were generated for; None leaves class accuracy out.
        dataset_name: data set to compare with: its name, a mapping with options, or an object. One without splits
            of its own is halved, class by class.
        features: extractor, likewise, or a function of (B, C, H, W) uint8 images to (B, D); None is that of the
            protocol, or else of the data set.
        metrics: names of metrics, see `dinit list metrics`.
        protocol: name of a protocol; None is the first that uses the features.
        reference: file of reference statistics (`dinit stats`, or the ADM evaluator's) in place of the data set;
            there is no row of real images then.
        seed: of subsets, shuffles and the choice of real images.
        name: of the model's row.
        cuda: whether to extract features on a GPU; None is a GPU if there is one.
        made_by: call that generated the images, kept in the report.
        label_sampling: how labels were drawn, where it is known; see `Protocol`.
        report_options: intervals, curves and encoders of the report.

    Raises:
        ValueError: images of another shape or dtype, labels out of range, unknown names, or a protocol and features
            that contradict each other.
    """
    _check_images(images)
    spec = EvaluationSpec(dataset_name, features, metrics, protocol, reference, report_options, seed, cuda)
    return Evaluator(spec, len(images)).report(images, labels, name, made_by, label_sampling)


class Evaluator:
    """Protocol, extractor and reference set of an evaluation, for one or more sets of samples.

    Args:
        spec: how samples are measured. A data set without splits of its own is halved, class by class.
        count: number of samples of a set; as many real images are measured as the baseline.

    Raises:
        ValueError: unknown names, a protocol and features that contradict each other, or files that are missing;
            before any image is read.
    """

    def __init__(self, spec: EvaluationSpec, count: int) -> None:
        self.spec, self.count = spec, count
        self.size: tuple[int, int] | None  # channels and pixels of a side of the data, where it is no file
        self._real: str | Mapping[str, Any] | ImageData | Reference
        if spec.reference is None:
            data = DATASETS.create(spec.data)
            self._real = spec.data if has_splits(spec.data) else data
            features, self.num_classes, self.class_names = data.features, data.num_classes, data.class_names
            self.size = (data.channels, data.image_size)
        else:
            self._real = load_reference(spec.reference)
            features, self.class_names = self._real.features, self._real.class_names
            self.num_classes, self.size = len(self.class_names), None
        given = resolved(spec.features)
        self.named = protocol_of(spec.protocol, given, features)
        self.extractor = make_extractor(self.named, given)
        self.extractor.weights_hash()  # a missing file of weights is an error from here on
        check_fits(self.extractor, self.class_names, *(self.size or ()))
        self._real_rows: dict[Settings, Row] = {}

    @cached_property
    def reference_set(self) -> ReferenceSet:
        """Reference set, whose features are extracted at the first use. ValueError for too few images."""
        if isinstance(self._real, Reference):
            return _from_file(self._real, self.named, self.extractor, self.spec.cuda)
        with stage("reading the real images"):
            real = real_images(self._real, self.count, self.spec.seed)
        _check_counts([self.count, len(real.train), len(real.test)])
        return ReferenceSet(
            self._extract(real.test, real.test_labels),
            real.name,
            real.reference,
            real.class_names,
            real.num_classes,
            tuple(real.test.shape[1:]),
            self._extract(real.train, real.train_labels),
            real.all_train,
            trained_on=real.trained_on,
        )

    def report(
        self,
        images: ImageSource,
        labels: Tensor | None = None,
        name: str = "model",
        made_by: Mapping[str, Any] | None = None,
        label_sampling: str | None = None,
    ) -> Report:
        """Report of one set of images; arguments as for `evaluate_images`."""
        _check_images(images)
        reference, metrics, options = self.reference_set, self.spec.metrics, self.spec.options
        self._check_shape(images)
        _check_labels(labels, len(images), reference.num_classes)
        samples = self._extract(images, labels)
        inputs = self._inputs(samples)
        with stage("computing the scores"):
            scores, missing = measure_inputs(inputs, metrics)
        if options.bootstrap:
            with stage(f"computing intervals by {options.bootstrap} resamplings"):
                scores |= intervals(inputs, metrics, options.bootstrap)
        curves = fid_curve(samples, reference.featured, self.spec.seed) if options.curve else {}
        if curves:
            scores["fid_infinity"] = curves["fid"]["infinity"]
        elif options.curve:
            missing.append("FID's curve: not measured, it needs 4 samples for each feature")
        rows = [Row(name, len(images), scores), *self._real_row(inputs)]
        notes = (*_notes(inputs, metrics, self.named), *missing, *reference.notes, *self._of_classifier())
        shown = {"samples": images, "reference": reference.featured.images, "class names": reference.class_names}
        if isinstance(self.extractor, TrainedExtractor):
            shown["held-out accuracy"] = self.extractor.classifier.card.accuracy
        return Report(
            self._protocol(inputs, label_sampling or _label_sampling(labels, reference.num_classes)),
            tuple(rows),
            notes,
            dict(made_by or {}),
            tuple(uneven(samples, reference.featured, self.extractor.any_size)),
            curves,
            {**inputs.evidence, **shown},
        )

    def _extract(self, images: ImageSource, labels: Tensor | None) -> ImageFeatures:
        if isinstance(self.extractor, NoFeatures):
            return ImageFeatures(len(images), images, None if labels is None else labels.cpu().numpy())
        spatial = "sfid" in self.spec.metrics
        return extract(images, self.extractor, labels=labels, spatial=spatial, cuda=self.spec.cuda)

    def _inputs(self, samples: ImageFeatures) -> MetricInputs:
        reference = self.reference_set
        sets = (samples, reference.featured, *([reference.real] if reference.real else []))
        counts = [len(one.pooled) for one in sets if one.pooled is not None] or [one.count for one in sets]
        return MetricInputs(
            samples,
            reference.featured,
            self.extractor,
            self.named.settings(counts, samples.count, self.spec.seed),
            knows_classes=reference.num_classes > 0
            and self.extractor.class_names() in (None, reference.class_names),
            train=reference.train,
            trained_on=reference.trained_on,
            encoders=dict(self.spec.options.encoders),
            cuda=self.spec.cuda,
        )

    def _of_classifier(self) -> list[str]:
        """Note on the features, where they are of a classifier of these classes."""
        if not isinstance(self.extractor, TrainedExtractor):
            return []
        card = self.extractor.classifier.card
        if not card.held_out:
            return ["how well the classifier works is not known: no picture was held out from its training"]
        line = f"the classifier is right on {card.accuracy:.1%} of {card.held_out:,} held-out pictures"
        if card.accuracy < POOR:
            line += "; that is poor, so class accuracy and FID show little"
        return [line]

    def _real_row(self, inputs: MetricInputs) -> list[Row]:
        real = self.reference_set.real
        if real is None:
            return []
        if inputs.settings not in self._real_rows:
            of_real = replace(inputs, samples=real, evidence={}, of_real=True, _own={})
            self._real_rows[inputs.settings] = Row(REAL, real.count, measure_inputs(of_real, self.spec.metrics)[0])
        return [self._real_rows[inputs.settings]]

    def _check_shape(self, images: ImageSource) -> None:
        wanted, shape = self.reference_set.shape, tuple(images[0:1].shape[1:])
        if wanted is not None and shape != wanted and not (self.extractor.any_size and len(images)):
            raise ValueError(f"images of {self.reference_set.dataset} are {wanted}, got {shape}")

    def _protocol(self, inputs: MetricInputs, labels: str) -> Protocol:
        import torch_fidelity

        reference, encoders = self.reference_set, (inputs.shared.get(name) for name in self.spec.metrics)
        return Protocol(
            dataset=reference.dataset,
            reference=reference.reference,
            features=self.named.features,
            weights=self.extractor.weights_hash(),
            resize=self.extractor.resize,
            statistics=_STATISTICS,
            labels=labels,
            sample_count=inputs.samples.count,
            real_count=0 if reference.real is None else reference.real.count,
            reference_count=reference.featured.count,
            torch_fidelity=torch_fidelity.__version__,
            name=self.named.name,
            encoders="; ".join(encoder for encoder in encoders if encoder),
            **asdict(inputs.settings),
        )


def _from_file(loaded: Reference, protocol: NamedProtocol, extractor: Extractor, cuda: bool | None) -> ReferenceSet:
    featured, notes = loaded.featured(protocol, extractor, cuda)
    names = loaded.class_names
    return ReferenceSet(featured, loaded.dataset, loaded.description, names, len(names), notes=notes)


def protocol_of(name: str | None, features: Any, of_data: str | None) -> NamedProtocol:
    """Protocol by its name, by the features given, or by those of the data; see `choose_protocol`."""
    given = features.get("name") if isinstance(features, Mapping) else features
    if isinstance(given, Extractor):
        given = getattr(given, "name", None) or getattr(type(given), "registry_name", type(given).__name__)
    elif callable(given):
        given = CallableExtractor(embed=given).name
    return choose_protocol(name, given, of_data)


def make_extractor(protocol: NamedProtocol, features: Any) -> Extractor:
    """Extractor from a name, a mapping, an object or a function of images; None is the protocol's."""
    if callable(features):
        return CallableExtractor(embed=features)
    if features is None and protocol.features.startswith(f"{KIND}-"):
        return by_protocol(protocol.features)
    return EXTRACTORS.create(protocol.features if features is None else features)


def _check_images(images: ImageSource) -> None:
    first = images if isinstance(images, Tensor) else images[0:1]
    if first.dtype != torch.uint8 or first.ndim != 4:
        raise ValueError(
            f"images must be uint8 of shape (N, C, H, W), got {first.dtype} of {tuple(first.shape)}; "
            "dinit.data.to_uint8 converts from [-1, 1]"
        )


def _check_counts(counts: Sequence[int]) -> None:
    if min(counts) < MIN_IMAGES:
        raise ValueError(f"metrics need at least {MIN_IMAGES} images in each set, got {min(counts)}")


def _check_labels(labels: Tensor | None, count: int, num_classes: int) -> None:
    if labels is None:
        return
    if labels.shape != (count,) or labels.is_floating_point():
        got = f"{labels.dtype} of {tuple(labels.shape)}"
        raise ValueError(f"labels must be integers of shape ({count},), one an image, got {got}")
    if num_classes and count and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(f"labels must be in 0 .. {num_classes - 1}, got {low} .. {high}")


def _label_sampling(labels: Tensor | None, num_classes: int) -> str:
    if labels is None or not num_classes:
        return "none"
    counts = torch.bincount(labels.cpu(), minlength=num_classes)
    return "balanced" if int(counts.max() - counts.min()) <= 1 else "as given"


def _notes(inputs: MetricInputs, metrics: Sequence[str], named: NamedProtocol) -> list[str]:
    notes, settings, count = [], inputs.settings, inputs.samples.count
    if "kid" in metrics:
        notes.append(f"KID over {settings.kid_subsets} subsets of {settings.kid_subset_size} images")
    if "inception-score" in metrics:
        notes.append(f"Inception score over {settings.isc_splits} split(s)")
    if named.samples and count != named.samples:
        notes.append(f"published scores of this protocol are on {named.samples:,} samples, these on {count:,}")
    return notes
