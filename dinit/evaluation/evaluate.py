"""From a set of generated images to a report, with real images measured the same way beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinit.data import ImageData
from dinit.evaluation.encoders import CallableExtractor
from dinit.evaluation.features import EXTRACTORS, Extractor
from dinit.evaluation.inputs import uneven
from dinit.evaluation.metrics import DEFAULT_METRICS, MIN_IMAGES, Case, check_metrics, measure_case
from dinit.evaluation.protocols import NamedProtocol, choose_protocol
from dinit.evaluation.real import RealImages, real_images
from dinit.evaluation.reference import Reference, load_reference
from dinit.evaluation.report import REAL, Protocol, Report, Row
from dinit.evaluation.resampling import fid_curve, intervals
from dinit.evaluation.sets import Featured, ImageSource, extract

_STATISTICS = "mean and unbiased covariance; KID: unbiased MMD², cubic kernel"


@dataclass(frozen=True)
class Extras:
    """What a report may have beside its figures.

    bootstrap: resamplings for 95 % intervals; 0 is none. curve: whether to measure FID against the number of
    samples. encoders: extractors, or functions of (B, C, H, W) uint8 images, for metrics that have their own
    ("cmmd", "fdd").
    """

    bootstrap: int = 0
    curve: bool = False
    encoders: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Against:
    """What samples are compared with. real: images for the real row, with their labels. any_size: whether other
    sizes than `shape` are accepted.
    """

    featured: Featured
    dataset: str
    reference: str
    class_names: tuple[str, ...]
    num_classes: int
    shape: tuple[int, ...] | None
    real: tuple[Tensor, Tensor] | None = None
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
    extras: Extras | None = None,
) -> Report:
    """Measures images against the data set's test split, and as many of its train split in the same way.

    images: (N, C, H, W) uint8, or another `ImageSource`. labels: (N,) int64, the classes that were asked for; None
    leaves class accuracy out. dataset_name, features: a name, a mapping with options, or an object; features None
    is the extractor of the protocol, or else the one that the data set names. A data set without splits of its own
    is halved, class by class. protocol: a named one. reference: a file of statistics (`dinit stats`, or the ADM
    evaluator's) in place of the data set; there is no real row then. made_by: kept in the report. label_sampling:
    how labels were drawn, where that is known. ValueError for images of another shape or dtype, labels out of
    range, unknown metrics, protocols that contradict.
    """
    check_metrics(metrics)
    _check_images(images)
    extras = extras or Extras()
    if reference is not None:
        loaded = load_reference(reference)
        chosen = _protocol_of(protocol, features, loaded.features)
        extractor = _extractor(chosen, features)
        against = _from_file(loaded, chosen, extractor, cuda)
    else:
        real = real_images(dataset_name, len(images), seed)
        chosen = _protocol_of(protocol, features, real.features)
        extractor = _extractor(chosen, features)
        _check_shape(images, tuple(real.test.shape[1:]), real.name, extractor)
        _check_labels(labels, len(images), real.num_classes)
        _check_counts([len(images), len(real.train), len(real.test)])
        against = _from_data(real, extractor, "sfid" in metrics, cuda)
    _check_labels(labels, len(images), against.num_classes)
    samples = extract(images, extractor, labels=labels, spatial="sfid" in metrics, cuda=cuda)
    rows, case, missing = _rows(name, samples, against, extractor, chosen, metrics, seed, cuda, extras)
    sampling = label_sampling or _label_sampling(labels, against.num_classes)
    return Report(
        _protocol(against, extractor, chosen, case, len(images), sampling, metrics),
        tuple(rows),
        (*_notes(case, metrics, chosen, len(images)), *missing, *against.notes),
        dict(made_by or {}),
        tuple(uneven(samples, against.featured, extractor.any_size)),
        fid_curve(samples, against.featured, seed) if extras.curve else {},
        {**case.evidence, "samples": images, "reference": against.featured.images},
    )


def _rows(
    name: str,
    samples: Featured,
    against: Against,
    extractor: Extractor,
    protocol: NamedProtocol,
    metrics: Sequence[str],
    seed: int,
    cuda: bool | None,
    extras: Extras,
) -> tuple[list[Row], Case, list[str]]:
    """The model's row and, where there are real images, theirs; the model's case; what was not measured of it."""
    real = against.real
    counts = [samples.count]
    counts += [len(against.featured.pooled)] if against.featured.pooled is not None else []
    counts += [len(real[0])] if real else []
    settings = protocol.settings(counts, samples.count, seed)
    knows = extractor.class_names() in (None, against.class_names) and against.num_classes > 0
    case = Case(samples, against.featured, extractor, settings, knows, against.train, dict(extras.encoders), cuda)
    scores, missing = measure_case(case, metrics)
    if extras.bootstrap:
        scores |= intervals(case, metrics, extras.bootstrap)
    rows = [Row(name, samples.count, scores)]
    if real is not None:
        theirs = extract(real[0], extractor, labels=real[1], spatial="sfid" in metrics, cuda=cuda)
        again = replace(case, samples=theirs, evidence={}, of_real=True, _own={})
        rows.append(Row(REAL, theirs.count, measure_case(again, metrics)[0]))
    return rows, case, missing


def _from_data(real: RealImages, extractor: Extractor, spatial: bool, cuda: bool | None) -> Against:
    return Against(
        extract(real.test, extractor, labels=real.test_labels, spatial=spatial, cuda=cuda),
        real.name,
        real.reference,
        real.class_names,
        real.num_classes,
        tuple(real.test.shape[1:]),
        (real.train, real.train_labels),
        real.all_train,
    )


def _from_file(loaded: Reference, protocol: NamedProtocol, extractor: Extractor, cuda: bool | None) -> Against:
    featured, notes = loaded.featured(protocol, extractor, cuda)
    return Against(
        featured, loaded.dataset, loaded.description, loaded.class_names, len(loaded.class_names), None, notes=notes
    )


def _protocol_of(name: str | None, features: Any, of_data: str | None) -> NamedProtocol:
    given = features.get("name") if isinstance(features, Mapping) else features
    if isinstance(given, Extractor):
        given = getattr(given, "name", None) or getattr(type(given), "registry_name", type(given).__name__)
    elif callable(given):
        given = CallableExtractor(embed=given).name
    return choose_protocol(name, given, of_data)


def _extractor(protocol: NamedProtocol, features: Any) -> Extractor:
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


def _check_shape(images: ImageSource, wanted: tuple[int, ...], name: str, extractor: Extractor) -> None:
    shape = tuple(images[0:1].shape[1:])
    if shape != wanted and not (extractor.any_size and len(images)):
        raise ValueError(f"images of {name} are {wanted}, got {shape}")


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


def _protocol(
    against: Against,
    extractor: Extractor,
    named: NamedProtocol,
    case: Case,
    samples: int,
    labels: str,
    metrics: Sequence[str],
) -> Protocol:
    import torch_fidelity

    return Protocol(
        dataset=against.dataset,
        reference=against.reference,
        features=named.features,
        weights=extractor.weights_hash(),
        resize=extractor.resize,
        statistics=_STATISTICS,
        labels=labels,
        sample_count=samples,
        real_count=0 if against.real is None else len(against.real[0]),
        reference_count=against.featured.count,
        torch_fidelity=torch_fidelity.__version__,
        name=named.name,
        encoders="; ".join(case.shared[key] for key in sorted(case.shared, key=str) if key in metrics),
        **asdict(case.settings),
    )


def _notes(case: Case, metrics: Sequence[str], named: NamedProtocol, count: int) -> list[str]:
    notes, settings = [], case.settings
    if "kid" in metrics:
        notes.append(f"KID over {settings.kid_subsets} subsets of {settings.kid_subset_size} images")
    if "inception-score" in metrics:
        notes.append(f"Inception score over {settings.isc_splits} split(s)")
    if named.samples and count != named.samples:
        notes.append(f"published figures of this protocol are on {named.samples:,} samples, these on {count:,}")
    return notes
