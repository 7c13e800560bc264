"""Evaluate a pipeline: generate class-balanced samples, measure them, write the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from dinit.data import DATASETS, ImageData
from dinit.data.latents import source_of
from dinit.evaluation.evaluate import ReportOptions, evaluate_images, make_extractor, protocol_of
from dinit.evaluation.features.base import Extractor
from dinit.evaluation.metrics.base import DEFAULT_METRICS, MIN_IMAGES, check_metrics
from dinit.evaluation.protocols import PROTOCOLS, NamedProtocol
from dinit.evaluation.reference import load_reference
from dinit.evaluation.reports.page import write_page
from dinit.evaluation.reports.report import Report
from dinit.evaluation.samples import read_samples
from dinit.pipelines.loading import locate, shipped
from dinit.training.recipe.file import load_recipe

if TYPE_CHECKING:
    from dinit.pipelines.call import SamplingOptions

RECIPE = "recipe.yaml"
_IMAGES_PER_CALL = 1000  # of a pipeline: 50,000 float images at once would not fit in memory
_RECORDED = ("sampler", "steps", "grid", "guidance")  # of the call, besides the seed


@dataclass(frozen=True)
class Sampled:
    """images: (N, C, H, W) uint8. nfe: network evaluations an image."""

    images: Tensor
    nfe: int


def evaluate(
    pipeline: Any,
    num_samples: int = 1000,
    *,
    dataset_name: str | Mapping[str, Any] | ImageData | None = None,
    features: str | Mapping[str, Any] | Extractor | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    protocol: str | None = None,
    reference: str | Path | None = None,
    report_options: ReportOptions | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    page: str | Path | None = None,
    cuda: bool | None = None,
    **call: Unpack[SamplingOptions],
) -> Report:
    """Generates num_samples images, as many of every class, and measures them against the data set.

    pipeline: a `Pipeline`, or a name, folder or hub id of one. call: options of the pipeline's call (sampler,
    steps, guidance, batch_size, …); the report keeps them as they were resolved. output, page: where to write the
    report, a .json and a .html file. dataset_name: None is what the pipeline's recipe trained on, where its folder
    has one, otherwise the digits. features: None is the extractor of the protocol, or else the one that the data
    set names. protocol 'adm' draws classes at random. These, metrics, reference, report_options, cuda: see
    `dinit.evaluation.evaluate_images`. ValueError for fewer than 8 samples, for classes that are not the data
    set's, and for what the pipeline or the metrics refuse; before anything is generated, where that can be known.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < MIN_IMAGES:
        raise ValueError(f"num_samples must be a whole number >= {MIN_IMAGES}, got {num_samples!r}")
    check_metrics(metrics)
    if dataset_name is not None:
        DATASETS.create(dataset_name)  # its mistakes before the pipeline is read
    destinations = [None if path is None else _destination(Path(path)) for path in (output, page)]
    name, pipe = _open(pipeline)
    dataset_name = _own_data(pipe) if dataset_name is None else dataset_name
    named, extractor, classes = _resolve(pipe, dataset_name, reference, protocol, features)
    labels = draw_labels(named, num_samples, classes, seed)
    planned = pipe.prepare(num_images=num_samples, labels=labels, seed=seed, **call).to_config()
    sampled = generate(pipe, num_samples, labels, seed, **call)
    made_by = {"pipeline": name, "seed": seed, "nfe": sampled.nfe, **{key: planned[key] for key in _RECORDED}}
    report = evaluate_images(
        sampled.images,
        labels,
        dataset_name,
        extractor,
        metrics,
        protocol=named.name if named.name in PROTOCOLS else None,
        reference=reference,
        seed=seed,
        name=name,
        cuda=cuda,
        made_by=made_by,
        label_sampling=named.labels if labels is not None else None,
        report_options=report_options,
    )
    _write(report, *destinations)
    return report


def evaluate_samples(
    samples: str | Path,
    *,
    dataset_name: str | Mapping[str, Any] | ImageData | None = None,
    features: str | Mapping[str, Any] | Extractor | None = None,
    metrics: Sequence[str] = DEFAULT_METRICS,
    protocol: str | None = None,
    reference: str | Path | None = None,
    report_options: ReportOptions | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    page: str | Path | None = None,
    cuda: bool | None = None,
) -> Report:
    """Measures images that were generated before: a folder of pictures or a pack (.npz, .npy).

    Labels are read from the folder's manifest, its sub-folders or the pack, where they are there. Everything else
    as for `evaluate`; dataset_name None is the digits unless a reference is given. ValueError for images of several
    sizes, or that cannot be read.
    """
    check_metrics(metrics)
    destinations = [None if path is None else _destination(Path(path)) for path in (output, page)]
    dataset_name = "digits" if dataset_name is None else dataset_name
    if reference is None:
        class_names = tuple(DATASETS.create(dataset_name).class_names)
    else:
        class_names = load_reference(reference).class_names
    read = read_samples(samples, class_names)
    report = evaluate_images(
        read.images,
        read.labels,
        dataset_name,
        features,
        metrics,
        protocol=protocol,
        reference=reference,
        seed=seed,
        name=Path(samples).resolve().name,
        cuda=cuda,
        made_by=read.made_by,
        report_options=report_options,
    )
    report = replace(report, notes=(*report.notes, *read.notes))
    _write(report, *destinations)
    return report


def draw_labels(protocol: NamedProtocol, count: int, classes: int, seed: int) -> Tensor | None:
    """The classes to ask a pipeline for, (count,), by the protocol's rule; None for a pipeline without classes."""
    if not classes:
        return None
    if protocol.labels == "random":
        return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.arange(count) % classes  # as many of each as can be


def _write(report: Report, output: Path | None, page: Path | None) -> None:
    if output is not None:
        report.write_json(output)
    if page is not None:
        write_page(report, page)


def generate(pipe: Any, count: int, labels: Tensor | None, seed: int, **call: Any) -> Sampled:
    """`count` images of the pipeline, for labels (count,) or, unconditional, for None.

    Image k has the key (seed, k) whatever the size of a call, so a prefix of a larger run is the same images.
    ValueError where the pipeline gives something else than finite (B, C, H, W) images.
    """
    pieces, nfe = [], 0
    for start in range(0, count, _IMAGES_PER_CALL):
        size = min(_IMAGES_PER_CALL, count - start)
        asked = None if labels is None else labels[start : start + size]
        made = pipe(asked, num_images=size, seed=seed, start_index=start, output_type="pt", **call)
        pieces.append(_to_bytes(made.images, size))
        nfe = made.nfe
    return Sampled(torch.cat(pieces), nfe)


def _to_bytes(images: Any, count: int) -> Tensor:
    """(count, C, H, W) float in [0, 1] -> uint8."""
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != count:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"the pipeline should give ({count}, C, H, W) for 'pt', got {shape}")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("the pipeline gave NaN or infinity: its weights, dtype or steps make it diverge")
    return (images.detach().float().cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def _resolve(
    pipe: Any, dataset: Any, reference: str | Path | None, protocol: str | None, features: Any
) -> tuple[NamedProtocol, Extractor, int]:
    """Protocol, extractor and number of classes to ask for; their mistakes before anything is generated."""
    if reference is None:
        data: ImageData = DATASETS.create(dataset)
        own, class_count = data.features, data.num_classes
    else:
        loaded = load_reference(reference)
        own, class_count = loaded.features, len(loaded.class_names)
    named = protocol_of(protocol, features, own)
    extractor = make_extractor(named, features)
    extractor.weights_hash()  # reads the file
    return named, extractor, _shared_classes(pipe, class_count)


def _shared_classes(pipe: Any, theirs: int) -> int:
    """How many classes to ask for; 0 is unconditional. ValueError where pipeline and data set disagree."""
    ours = pipe.backbone.num_classes
    if ours and theirs and ours != theirs:
        raise ValueError(f"the pipeline has {ours} classes, the data set {theirs}; evaluate on its own data")
    return ours


def _open(pipeline: Any) -> tuple[str, Any]:
    if isinstance(pipeline, str | Path):
        from dinit.pipelines.generate import Pipeline  # here: it imports diffusers

        source, pipeline = str(pipeline), Pipeline.from_pretrained(pipeline)
    else:
        source = getattr(pipeline, "name_or_path", None) or type(pipeline).__name__
    # A folder goes into the report by its name alone: the rest of its path says something of one machine only.
    return Path(source).resolve().name if Path(source).is_dir() else source, pipeline


def _own_data(pipe: Any) -> dict[str, Any]:
    """The images in the recipe of the pipeline's folder, without their split; the digits where there is none."""
    named = getattr(pipe, "name_or_path", None)
    recipe = locate(named) / RECIPE if named and (named in shipped() or Path(named).is_dir()) else None
    if recipe is None or not recipe.is_file():
        return {"name": "digits"}
    images = source_of(load_recipe(recipe).data.spec())
    return {key: value for key, value in images.items() if key != "split"}


def _destination(path: Path) -> Path:
    """`path`, whose folder exists from now on: an hour of sampling should not end at a missing folder."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; the report needs a file name, such as {path / 'report.json'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path.parent} cannot be made ({error.strerror}); choose another output") from error
    return path
