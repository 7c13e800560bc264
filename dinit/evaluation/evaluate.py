"""From a set of generated images to a report, with real images measured the same way beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinit.data import ImageData
from dinit.evaluation.features.base import EXTRACTORS, Extractor
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
from dinit.evaluation.real_images import RealImages, real_images
from dinit.evaluation.reference import Reference, load_reference
from dinit.evaluation.reports.report import REAL, Protocol, Report, Row
from dinit.evaluation.resampling import MIN_RESAMPLINGS, fid_curve, intervals
from dinit.evaluation.sanity_checks import uneven

_STATISTICS = "mean and unbiased covariance; KID: unbiased MMD², cubic kernel"


@dataclass(frozen=True)
class ReportOptions:
    """What a report may have beside its figures.

    bootstrap: resamplings for 95 % intervals; 0 is none. curve: whether to measure FID against the number of
    samples. encoders: extractors, or functions of (B, C, H, W) uint8 images, for metrics that have their own
    ("cmmd", "fdd").
    """

    bootstrap: int = 0
    curve: bool = False
    encoders: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.bootstrap and self.bootstrap < MIN_RESAMPLINGS:
            raise ValueError(f"intervals need at least {MIN_RESAMPLINGS} resamplings, got {self.bootstrap}")


@dataclass(frozen=True)
class ReferenceSet:
    """What samples are compared with: `featured`, and its description. real: for the real row. shape: that images
    must have; None: any that the extractor reads. train: gives all training images.
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


def evaluate_images(
    images: ImageSource,
    labels: Tensor | None = None,
    dataset_name: str | Mapping[str, Any] | ImageData = "digits",
    features: str | Mapping[str, Any] | Extractor | None = None,
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
    """Measures images against the data set's test split, and as many of its train split in the same way.

    images: (N, C, H, W) uint8, or another `ImageSource`. labels: (N,) int64, the classes that were asked for; None
    leaves class accuracy out. The others as for `Evaluator` and `Evaluator.report`. ValueError for images of
    another shape or dtype, labels out of range, unknown metrics, protocols that contradict.
    """
    _check_images(images)
    evaluator = Evaluator(
        len(images),
        dataset_name,
        features,
        metrics,
        protocol,
        reference,
        seed=seed,
        cuda=cuda,
        report_options=report_options,
    )
    return evaluator.report(images, labels, name, made_by, label_sampling)


class Evaluator:
    """Real images and their features, at hand for one set of samples after another.

    count: how many samples there will be; as many real ones are measured beside them. dataset_name, features: a
    name, a mapping with options, or an object; features None is the extractor of the protocol, or else the one that
    the data set names; a function of (B, C, H, W) uint8 images to (B, D) is one too. A data set without splits of
    its own is halved, class by class. protocol: a named one. reference: a file of statistics (`dinit stats`, or the
    ADM evaluator's) in place of the data set; there is no real row then. cuda: where to extract features; None: a
    GPU if there is one. ValueError for unknown names, and what contradicts.
    """

    def __init__(
        self,
        count: int,
        dataset_name: str | Mapping[str, Any] | ImageData = "digits",
        features: Any = None,
        metrics: Sequence[str] = DEFAULT_METRICS,
        protocol: str | None = None,
        reference: str | Path | None = None,
        *,
        seed: int = 0,
        cuda: bool | None = None,
        report_options: ReportOptions | None = None,
    ) -> None:
        check_metrics(metrics)
        self.metrics, self.seed, self.cuda, self.report_options = (
            tuple(metrics),
            seed,
            cuda,
            report_options or ReportOptions(),
        )
        self.spatial = "sfid" in metrics
        self._real_rows: dict[Settings, Row] = {}
        if reference is not None:
            loaded = load_reference(reference)
            self.named = protocol_of(protocol, features, loaded.features)
            self.extractor = make_extractor(self.named, features)
            self.against = _from_file(loaded, self.named, self.extractor, cuda)
            return
        real = real_images(dataset_name, count, seed)
        self.named = protocol_of(protocol, features, real.features)
        self.extractor = make_extractor(self.named, features)
        _check_counts([count, len(real.train), len(real.test)])
        self.against = self._from_data(real)

    def report(
        self,
        images: ImageSource,
        labels: Tensor | None = None,
        name: str = "model",
        made_by: Mapping[str, Any] | None = None,
        label_sampling: str | None = None,
    ) -> Report:
        """The report of one set of images. made_by: kept in it. label_sampling: how labels were drawn, if known."""
        _check_images(images)
        against, count = self.against, len(images)
        self._check_shape(images)
        _check_labels(labels, count, against.num_classes)
        samples = self._extract(images, labels)
        inputs = self._inputs(samples)
        scores, missing = measure_inputs(inputs, self.metrics)
        if self.report_options.bootstrap:
            scores |= intervals(inputs, self.metrics, self.report_options.bootstrap)
        curves = fid_curve(samples, against.featured, self.seed) if self.report_options.curve else {}
        if curves:
            scores["fid_infinity"] = curves["fid"]["infinity"]
        elif self.report_options.curve:
            missing.append("FID's curve: not measured, it needs 4 samples for each feature")
        rows = [Row(name, count, scores), *self._real_row(inputs)]
        notes = (*_notes(inputs, self.metrics, self.named), *missing, *against.notes)
        shown = {"samples": images, "reference": against.featured.images, "class names": against.class_names}
        return Report(
            self._protocol(inputs, label_sampling or _label_sampling(labels, against.num_classes)),
            tuple(rows),
            notes,
            dict(made_by or {}),
            tuple(uneven(samples, against.featured, self.extractor.any_size)),
            curves,
            {**inputs.evidence, **shown},
        )

    def _extract(self, images: ImageSource, labels: Tensor | None) -> ImageFeatures:
        return extract(images, self.extractor, labels=labels, spatial=self.spatial, cuda=self.cuda)

    def _from_data(self, real: RealImages) -> ReferenceSet:
        return ReferenceSet(
            self._extract(real.test, real.test_labels),
            real.name,
            real.reference,
            real.class_names,
            real.num_classes,
            tuple(real.test.shape[1:]),
            self._extract(real.train, real.train_labels),
            real.all_train,
        )

    def _inputs(self, samples: ImageFeatures) -> MetricInputs:
        against = self.against
        sets = (samples, against.featured, *([against.real] if against.real else []))
        counts = [len(one.pooled) for one in sets if one.pooled is not None]
        settings = self.named.settings(counts, samples.count, self.seed)
        knows = against.num_classes > 0 and self.extractor.class_names() in (None, against.class_names)
        encoders = dict(self.report_options.encoders)
        return MetricInputs(
            samples, against.featured, self.extractor, settings, knows, against.train, encoders, self.cuda
        )

    def _real_row(self, inputs: MetricInputs) -> list[Row]:
        real = self.against.real
        if real is None:
            return []
        if inputs.settings not in self._real_rows:
            again = replace(inputs, samples=real, evidence={}, of_real=True, _own={})
            self._real_rows[inputs.settings] = Row(REAL, real.count, measure_inputs(again, self.metrics)[0])
        return [self._real_rows[inputs.settings]]

    def _check_shape(self, images: ImageSource) -> None:
        wanted, shape = self.against.shape, tuple(images[0:1].shape[1:])
        if wanted is not None and shape != wanted and not (self.extractor.any_size and len(images)):
            raise ValueError(f"images of {self.against.dataset} are {wanted}, got {shape}")

    def _protocol(self, inputs: MetricInputs, labels: str) -> Protocol:
        import torch_fidelity

        against, encoders = self.against, (inputs.shared.get(name) for name in self.metrics)
        return Protocol(
            dataset=against.dataset,
            reference=against.reference,
            features=self.named.features,
            weights=self.extractor.weights_hash(),
            resize=self.extractor.resize,
            statistics=_STATISTICS,
            labels=labels,
            sample_count=inputs.samples.count,
            real_count=0 if against.real is None else against.real.count,
            reference_count=against.featured.count,
            torch_fidelity=torch_fidelity.__version__,
            name=self.named.name,
            encoders="; ".join(said for said in encoders if said),
            **asdict(inputs.settings),
        )


def _from_file(loaded: Reference, protocol: NamedProtocol, extractor: Extractor, cuda: bool | None) -> ReferenceSet:
    featured, notes = loaded.featured(protocol, extractor, cuda)
    names = loaded.class_names
    return ReferenceSet(featured, loaded.dataset, loaded.description, names, len(names), notes=notes)


def protocol_of(name: str | None, features: Any, of_data: str | None) -> NamedProtocol:
    """The protocol by its name, or by the features asked for, or by those of the data. See `choose_protocol`."""
    given = features.get("name") if isinstance(features, Mapping) else features
    if isinstance(given, Extractor):
        given = getattr(given, "name", None) or getattr(type(given), "registry_name", type(given).__name__)
    elif callable(given):
        given = CallableExtractor(embed=given).name
    return choose_protocol(name, given, of_data)


def make_extractor(protocol: NamedProtocol, features: Any) -> Extractor:
    """The extractor asked for, a function of images among what can be, else the protocol's."""
    if callable(features):
        return CallableExtractor(embed=features)
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
        notes.append(f"published figures of this protocol are on {named.samples:,} samples, these on {count:,}")
    return notes
