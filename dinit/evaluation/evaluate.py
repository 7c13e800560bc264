"""From a set of generated images to a report, with real images measured the same way beside them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dinit.data import DATASETS, ImageData, epoch_order
from dinit.data.order import stratified
from dinit.evaluation.features import EXTRACTORS, Extractor
from dinit.evaluation.metrics import METRICS, Settings, check_metrics, measure
from dinit.evaluation.report import REAL, Protocol, Report, Row

_STATISTICS = "mean and unbiased covariance; KID: unbiased MMD², cubic kernel"


@dataclass(frozen=True)
class RealImages:
    """Two disjoint sets of real images: `train` for the real row, `test` to compare with. (N, C, H, W)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    name: str
    reference: str
    class_names: tuple[str, ...]
    num_classes: int
    features: str


def evaluate_images(
    images: Tensor,
    labels: Tensor | None = None,
    dataset_name: str | Mapping[str, Any] | ImageData = "digits",
    features: str | Mapping[str, Any] | Extractor | None = None,
    metrics: Sequence[str] = METRICS,
    *,
    seed: int = 0,
    name: str = "model",
    cuda: bool | None = None,
    made_by: Mapping[str, Any] | None = None,
) -> Report:
    """Measures images against the data set's test split, and as many of its train split in the same way.

    images: (N, C, H, W) uint8. labels: (N,) int64, the classes that were asked for; None leaves class
    accuracy out. dataset_name, features: a name, a mapping with options, or an object; features None is the
    extractor that the data set names. A data set without splits of its own is halved, class by class.
    made_by: kept in the report.
    ValueError for images of another shape or dtype, labels out of range, unknown metrics.
    """
    check_metrics(metrics)
    _check_images(images)
    real = real_images(dataset_name, len(images), seed)
    extractor: Extractor = EXTRACTORS.create(real.features if features is None else features)
    if images.shape[1:] != real.test.shape[1:]:
        wanted = tuple(real.test.shape[1:])
        raise ValueError(f"images of {real.name} are {wanted}, got {tuple(images.shape[1:])}")
    _check_labels(labels, len(images), real.num_classes)
    train, train_labels = real.train, real.train_labels
    knows = extractor.class_names() in (None, real.class_names)
    settings = Settings.for_counts([len(images), len(train), len(real.test)], seed)

    rows, read = [], knows
    for row_name, samples, asked in ((name, images, labels), (REAL, train, train_labels)):
        scores = measure(samples, real.test, extractor, settings, metrics, cuda)
        if "class-accuracy" in metrics and asked is not None and real.num_classes and knows:
            found = extractor.read_labels(samples)
            read = found is not None
            if found is not None:
                scores["class_accuracy"] = float((found == asked.cpu()).double().mean())
        rows.append(Row(row_name, len(samples), scores))

    protocol = _protocol(real, extractor, settings, len(images), len(train), _label_sampling(labels, real))
    notes = _notes(settings, metrics, labels, read)
    return Report(protocol, tuple(rows), notes, dict(made_by or {}))


def real_images(
    dataset: str | Mapping[str, Any] | ImageData, count: int | None = None, seed: int = 0
) -> RealImages:
    """The data set's own train and test splits where it has them, otherwise two halves of every class.

    count: how many of the train images, drawn by `seed`; all by default, in the data set's own order.
    """

    def drawn(rows: NDArray[np.int64]) -> list[int]:
        return (rows if count is None else rows[epoch_order(seed, 0, len(rows))[:count]]).tolist()

    options = {"name": dataset} if isinstance(dataset, str) else dataset
    if isinstance(options, Mapping) and "split" in _options_of(options):
        if "split" in options:
            raise ValueError(f"evaluation reads both splits; leave split={options['split']!r} out")
        train, test = (DATASETS.create(options, split=split) for split in ("train", "test"))
        chosen = drawn(np.arange(len(train)))
        parts = (train.uint8_images(chosen), train.labels[chosen], test.uint8_images())
        name, how = str(options["name"]), "test split"
    else:
        train = test = DATASETS.create(options)
        half = stratified(train.labels, 0.5, seed=0)
        first, second = (np.flatnonzero(mask) for mask in (~half, half))
        chosen = drawn(first)
        parts = (train.uint8_images(chosen), train.labels[chosen], test.uint8_images(second.tolist()))
        name, how = getattr(train, "registry_name", type(train).__name__), "second half of every class"
    reference = f"{name}, {how}, {test.fingerprint()[:16]}"
    labels, classes = torch.from_numpy(parts[1]), tuple(train.class_names)
    return RealImages(parts[0], labels, parts[2], name, reference, classes, train.num_classes, train.features)


def _options_of(spec: Mapping[str, Any]) -> list[str]:
    return list(inspect.signature(DATASETS[spec.get("name", "")]).parameters)


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(
            f"images must be uint8 of shape (N, C, H, W), got {images.dtype} of {tuple(images.shape)}; "
            "dinit.data.to_uint8 converts from [-1, 1]"
        )


def _check_labels(labels: Tensor | None, count: int, num_classes: int) -> None:
    if labels is None:
        return
    if labels.shape != (count,) or labels.is_floating_point():
        got = f"{labels.dtype} of {tuple(labels.shape)}"
        raise ValueError(f"labels must be integers of shape ({count},), one an image, got {got}")
    if num_classes and count and not (int(labels.min()) >= 0 and int(labels.max()) < num_classes):
        low, high = int(labels.min()), int(labels.max())
        raise ValueError(f"labels must be in 0 .. {num_classes - 1}, got {low} .. {high}")


def _label_sampling(labels: Tensor | None, real: RealImages) -> str:
    if labels is None or not real.num_classes:
        return "none"
    counts = torch.bincount(labels.cpu(), minlength=real.num_classes)
    return "balanced" if int(counts.max() - counts.min()) <= 1 else "as given"


def _protocol(
    real: RealImages, extractor: Extractor, settings: Settings, samples: int, train: int, labels: str
) -> Protocol:
    import torch_fidelity

    return Protocol(
        dataset=real.name,
        reference=real.reference,
        features=type(extractor).registry_name,  # pyright: ignore[reportAttributeAccessIssue]
        weights=extractor.weights_hash(),
        resize=extractor.resize,
        statistics=_STATISTICS,
        labels=labels,
        sample_count=samples,
        real_count=train,
        reference_count=len(real.test),
        torch_fidelity=torch_fidelity.__version__,
        **asdict(settings),
    )


def _notes(settings: Settings, metrics: Sequence[str], labels: Tensor | None, read: bool) -> tuple[str, ...]:
    notes = []
    if "kid" in metrics:
        notes.append(f"KID over {settings.kid_subsets} subsets of {settings.kid_subset_size} images")
    if "inception-score" in metrics:
        notes.append(f"Inception score over {settings.isc_splits} split(s)")
    if "class-accuracy" in metrics and labels is None:
        notes.append("no labels given: class accuracy not measured for the model")
    if "class-accuracy" in metrics and not read:
        notes.append("this extractor reads no classes of the data set: class accuracy not measured")
    return tuple(notes)
