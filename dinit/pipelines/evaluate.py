"""Evaluation of pipelines and of existing images: sampling, scores and files of the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from dinit.data import DATASETS, ImageData
from dinit.data.class_names import find_name
from dinit.data.latents import source_of
from dinit.evaluation.evaluate import EvaluationSpec, Evaluator, ReportOptions
from dinit.evaluation.features.base import Extractor
from dinit.evaluation.metrics.base import DEFAULT_METRICS, MIN_IMAGES
from dinit.evaluation.protocols import NamedProtocol
from dinit.evaluation.reference import load_reference
from dinit.evaluation.reports.page import write_page
from dinit.evaluation.reports.report import Report
from dinit.evaluation.samples import read_samples
from dinit.files import user_path
from dinit.pipelines.loading import locate, shipped
from dinit.pipelines.measuring import (
    classifier_places,
    seconds_per_image,
    usual_count,
    usual_features,
)
from dinit.progress import Progress
from dinit.training.recipe.file import load_recipe

if TYPE_CHECKING:
    from dinit.pipelines.call import SamplingOptions

RECIPE = "recipe.yaml"
_IMAGES_PER_CALL = 1000  # of a pipeline: 50,000 float images at once would not fit in memory
_RECORDED = ("sampler", "steps", "grid", "end", "guidance", "cache", "edits")  # of the call, besides the seed


@dataclass(frozen=True)
class Sampled:
    """Generated images (N, C, H, W) uint8, and nfe, network evaluations per image."""

    images: Tensor
    nfe: int


def evaluate(
    pipeline: Any,
    num_samples: int = 1000,
    *,
    dataset_name: str | Mapping[str, Any] | ImageData | None = None,
    features: str | Mapping[str, Any] | Extractor | Callable[..., Any] | None = None,
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
    """Evaluate a pipeline: generate class-balanced samples and measure them against a data set.

    Args:
        pipeline: a `Pipeline`, or a name, folder or Hub id of one.
        num_samples: images to generate, at least 8; as many of every class, or drawn at random by protocol 'adm'.
        dataset_name: data set to compare with: its name, a mapping with options, or an object; None is the one in
            the recipe of the pipeline's folder, or else the digits.
        features: extractor, likewise, or a function of (B, C, H, W) uint8 images to (B, D); None is that of the
            protocol, or else of the data set.
        metrics: names of metrics, see `dinit list metrics`.
        protocol: name of a protocol; None is the first that uses the features.
        reference: file of reference statistics in place of the data set; there is no row of real images then.
        report_options: intervals, curves and encoders of the report.
        seed: of the images, of subsets and shuffles, and of the choice of real images.
        output: file for the report, .json.
        page: file for the report as a page, .html.
        cuda: whether to extract features on a GPU; None is a GPU if there is one.
        call: options of the pipeline's call (sampler, steps, guidance, batch_size, …); the report keeps them as
            they were resolved.

    Raises:
        ValueError: fewer than 8 samples, classes that are not the data set's, or anything that the pipeline or the
            metrics refuse; before images are generated, where that can be known.
    """
    if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < MIN_IMAGES:
        raise ValueError(f"num_samples must be a whole number >= {MIN_IMAGES}, got {num_samples!r}")
    spec = EvaluationSpec(dataset_name, features, metrics, protocol, reference, report_options, seed, cuda)
    return evaluate_pipeline(pipeline, num_samples, spec, output, page, **call)


def evaluate_pipeline(
    pipeline: Any,
    num_samples: int | None,
    spec: EvaluationSpec,
    output: str | Path | None = None,
    page: str | Path | None = None,
    **call: Unpack[SamplingOptions],
) -> Report:
    """Evaluate a pipeline as `evaluate` does, with the options of the evaluation in a spec.

    num_samples: None is 1,000, or fewer where these take more than ten minutes.
    """
    if spec.dataset_name is not None:
        DATASETS.create(spec.dataset_name)  # its mistakes before the pipeline is read
    output, page = _destination(output), _destination(page)
    name, pipe = _open(pipeline)
    source = pipeline if isinstance(pipeline, str | Path) else getattr(pipe, "name_or_path", None)
    places = classifier_places(source) if spec.dataset_name is None else []
    if spec.dataset_name is None:
        spec = replace(spec, dataset_name=_own_data(pipe))
    if num_samples is None:
        num_samples = usual_count(seconds_per_image(pipe, spec.seed, **call))
    is_run = places and not (user_path(str(source)) / RECIPE).is_file()  # as a checkpoint of it
    what = places[-1].parent if is_run else source or "DATA"
    spec, notes = usual_features(spec, num_samples, places, str(what))
    evaluator = Evaluator(spec, num_samples)
    _check_size(pipe, evaluator)
    labels = draw_labels(evaluator.named, num_samples, _shared_classes(pipe, evaluator.num_classes), spec.seed)
    chosen = _numbered_as_in(pipe, evaluator.class_names, labels)
    planned = pipe.prepare(num_images=num_samples, labels=chosen, seed=spec.seed, **call).to_config()
    sampled = generate(pipe, num_samples, chosen, spec.seed, **call)
    recorded = {key: planned[key] for key in _RECORDED if key in planned}
    made_by = {"pipeline": name, "seed": spec.seed, "nfe": sampled.nfe, **recorded}
    label_sampling = evaluator.named.labels if labels is not None else None
    report = evaluator.report(sampled.images, labels, name, made_by, label_sampling)
    return _written(replace(report, notes=(*report.notes, *notes)), output, page)


def evaluate_samples(
    samples: str | Path,
    spec: EvaluationSpec | None = None,
    output: str | Path | None = None,
    page: str | Path | None = None,
) -> Report:
    """Evaluate existing images: a folder of pictures or a pack (.npz, .npy).

    Labels are read from the folder's manifest, its sub-folders or the pack, where they have any.

    Args:
        samples: the folder or file.
        spec: options of the evaluation; None is the usual ones.
        output: file for the report, .json.
        page: file for the report as a page, .html.

    Raises:
        ValueError: images of several sizes, or that cannot be read, or anything that the metrics refuse.
    """
    spec = EvaluationSpec() if spec is None else spec
    output, page = _destination(output), _destination(page)
    if spec.reference is None:
        class_names = tuple(DATASETS.create(spec.data).class_names)
    else:
        class_names = load_reference(spec.reference).class_names
    read = read_samples(samples, class_names)
    name = user_path(samples).resolve().name
    spec, notes = usual_features(spec, len(read.images), what="DATA")
    report = Evaluator(spec, len(read.images)).report(read.images, read.labels, name, read.made_by)
    return _written(replace(report, notes=(*report.notes, *read.notes, *notes)), output, page)


def draw_labels(protocol: NamedProtocol, count: int, classes: int, seed: int) -> Tensor | None:
    """Classes (count,) of the images to generate, by the protocol's rule; None for a pipeline without classes."""
    if not classes:
        return None
    if protocol.labels == "random":
        return torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    return torch.arange(count) % classes  # equal counts, up to one


def _written(report: Report, output: Path | None, page: Path | None) -> Report:
    if output is not None:
        report.write_json(output)
    if page is not None:
        write_page(report, page)
    return report


def generate(pipe: Any, count: int, labels: Tensor | None, seed: int, **call: Any) -> Sampled:
    """Images of a pipeline for labels (count,), or unconditional for None.

    Image k has the key (seed, k) whatever the size of a call, so a prefix of a larger run is the same images.
    ValueError where the pipeline gives anything but finite (B, C, H, W) images.
    """
    pieces, nfe = [], 0
    with Progress("generate", count) as progress:
        for start in range(0, count, _IMAGES_PER_CALL):
            size = min(_IMAGES_PER_CALL, count - start)
            some = None if labels is None else labels[start : start + size]
            watch = {"callback_on_step_end": _steps_shown(progress)} if progress.enabled else {}
            made = pipe(some, num_images=size, seed=seed, start_index=start, output_type="pt", **watch, **call)
            pieces.append(_to_bytes(made.images, size))
            nfe = made.nfe
            progress.update(start + size)
    return Sampled(torch.cat(pieces), nfe)


def _steps_shown(progress: Progress) -> Callable[[Any], None]:
    """A callback of a call's steps: an image of which half the steps are done counts as half."""
    images = float(progress.done)

    def after(step: Any) -> None:
        nonlocal images
        images += len(step.x_s) / step.total
        progress.update(round(images))

    return after


def _to_bytes(images: Any, count: int) -> Tensor:
    """Images (count, C, H, W) from floats in [0, 1] to uint8."""
    if not isinstance(images, Tensor) or images.ndim != 4 or len(images) != count:
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"the pipeline should give ({count}, C, H, W) for 'pt', got {shape}")
    if not bool(torch.isfinite(images).all()):
        raise ValueError("the pipeline gave NaN or infinity: its weights, dtype or steps make it diverge")
    return (images.detach().float().cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def _shared_classes(pipe: Any, theirs: int) -> int:
    """Number of classes to generate; 0 is unconditional. ValueError where pipeline and data set disagree."""
    ours = pipe.backbone.num_classes
    if ours and theirs and ours != theirs:
        raise ValueError(f"the pipeline has {ours} classes, the data set {theirs}; evaluate on its own data")
    return ours


def _check_size(pipe: Any, evaluator: Evaluator) -> None:
    """ValueError, before anything is generated, where a pipeline of pixels gives pictures of another size."""
    ours = getattr(pipe.backbone, "image_size", None)
    if evaluator.size is None or ours is None or getattr(pipe, "vae", None) is not None:
        return
    if ours != evaluator.size[1] and not evaluator.extractor.any_size:
        side = evaluator.size[1]
        raise ValueError(
            f"the pipeline gives pictures of {ours}×{ours}, the data set has {side}×{side}; give it with the "
            f"pipeline's size, as in --data folder:path=photos,size={ours}"
        )


def _numbered_as_in(pipe: Any, class_names: Sequence[str], labels: Tensor | None) -> Tensor | None:
    """The data set's labels by the numbers that the pipeline has for classes of these names.

    Unchanged where not all of the names are the pipeline's: classes are then paired by number.
    """
    ours = getattr(pipe, "class_names", None)
    if labels is None or not ours or len(set(ours)) != len(ours) or len(ours) != len(class_names):
        return labels
    places = [find_name(name, ours) for name in class_names]
    numbers = [place for place in places if place is not None]
    return torch.tensor(numbers)[labels] if len(set(numbers)) == len(ours) else labels


def _open(pipeline: Any) -> tuple[str, Any]:
    if isinstance(pipeline, str | Path):
        from dinit.pipelines.generate import Pipeline  # here: it imports diffusers

        source, pipeline = str(pipeline), Pipeline.from_pretrained(pipeline)
    else:
        source = getattr(pipeline, "name_or_path", None) or type(pipeline).__name__
    # A folder goes into the report by its name alone: the rest of its path holds on one machine only.
    return user_path(source).resolve().name if user_path(source).is_dir() else source, pipeline


def _own_data(pipe: Any) -> dict[str, Any]:
    """Data set in the recipe of the pipeline's folder, without its split; the digits where there is none."""
    named = getattr(pipe, "name_or_path", None)
    recipe = locate(named) / RECIPE if named and (named in shipped() or user_path(named).is_dir()) else None
    if recipe is None or not recipe.is_file():
        return {"name": "digits"}
    images = source_of(load_recipe(recipe).data.spec())
    return {key: value for key, value in images.items() if key != "split"}


def _destination(given: str | Path | None) -> Path | None:
    """Path of a file to write, whose folder is made: an hour of sampling should not end at a missing folder."""
    if given is None:
        return None
    path = user_path(given)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; the report needs a file name, such as {path / 'report.json'}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{path.parent} cannot be made ({error.strerror}); choose another output") from error
    return path
