"""Classifier of a user's classes: from a folder, a data set, a recipe or a run to a folder for `dinit evaluate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from dinit.data import DATASETS, ImageData
from dinit.data.folder import class_folders
from dinit.data.images import seen_size
from dinit.data.latents import source_of
from dinit.data.scan import find_pictures
from dinit.evaluation.classifier_training import (
    ClassifierPlan,
    Progress,
    SplitData,
    data_name,
    split_data,
    train_image_classifier,
    usual_plan,
)
from dinit.evaluation.features.image_classifier import LARGEST, SMALLEST, ImageClassifier, is_classifier
from dinit.evaluation.features.trained_classifier import KIND, OF_USER
from dinit.files import user_path
from dinit.pipelines.loading import locate, shipped
from dinit.targets import check_writable
from dinit.training.recipe.file import load_recipe

RECIPE = "recipe.yaml"
_PEEKED = 200  # pictures of a folder whose headers are read


@dataclass(frozen=True)
class ClassifierJob:
    """What a classifier is trained on, and where it is written.

    Attributes:
        spec: name and options of the data set.
        folder: of the classifier.
        run: the run that the data is of, where it was given by one.
    """

    spec: Mapping[str, Any]
    folder: Path
    run: Path | None = None


def classifier_job(what: str | Path, size: int | None = None) -> ClassifierJob:
    """Data and folder of a classifier by what a user gives.

    Args:
        what: a folder of class folders, a data set (name and options), a recipe, or a run's folder.
        size: pixels of a side, for a folder of class folders; None is by the pictures' own sizes.

    Raises:
        ValueError: no such folder or data set, or one without classes.
    """
    path = user_path(what)
    if (path / RECIPE).is_file():
        run = path.parent if path.name == "pipeline" and (path.parent / RECIPE).is_file() else path
        return ClassifierJob(_of_recipe(path / RECIPE), run / KIND, run)
    if str(what) in shipped():
        return ClassifierJob(_of_recipe(locate(str(what)) / RECIPE), OF_USER / str(what))
    spec = _of_recipe(path) if path.suffix in (".yaml", ".yml") else data_spec(what, size)
    return ClassifierJob(spec, OF_USER / data_name(spec))


def data_spec(what: str | Path, size: int | None = None) -> dict[str, Any]:
    """Name and options of the data set that a user gives as a folder, a file, or a name with options.

    Args:
        what: a folder of class folders or of IDX files, a .npz or an IDX file, or as in glyphs:size=32.
        size: pixels of a side, for a folder of class folders; None is by the pictures' own sizes.

    Raises:
        ValueError: no such folder or data set.
    """
    path = user_path(what)
    if path.is_dir():
        return _of_folder(path, size)
    if path.is_file():
        return {"name": "npz" if path.suffix == ".npz" else "idx", "path": str(what)}
    if "/" in str(what) and ":" not in str(what):
        raise ValueError(f"there is no folder {what}; {_WANTED}")
    spec = DATASETS.parse(str(what))
    if spec["name"] not in DATASETS:
        DATASETS.create(spec)  # the error with the nearest name
    return spec


_WANTED = (
    "give a folder with one sub-folder of pictures for each class, a data set such as idx:path=FOLDER, a "
    "recipe, or a run's folder"
)


def _of_recipe(path: Path) -> dict[str, Any]:
    return dict(source_of(load_recipe(path).data.spec()))


def _of_folder(path: Path, size: int | None) -> dict[str, Any]:
    """The data set in a folder: IDX files, or class folders of pictures."""
    if any("idx" in one.name and "images" in one.name for one in path.iterdir() if one.is_file()):
        return {"name": "idx", "path": str(path)}
    class_folders(path)  # ValueError for another layout
    found, grey = peek(path)
    chosen = size or usual_size(found)
    return {"name": "folder", "path": str(path), "size": chosen, "channels": 1 if grey else 3, "check": "skip"}


def peek(path: Path) -> tuple[Counter[int], bool]:
    """Short sides of up to 200 pictures of a folder, and whether all of them are grey. Reads headers only."""
    files = find_pictures(path)[0]
    rows = np.unique(np.linspace(0, len(files) - 1, min(len(files), _PEEKED)).round().astype(int)) if files else []
    sides: Counter[int] = Counter()
    grey = bool(files)
    for row in rows:
        try:
            with Image.open(files[row]) as picture:
                sides[min(seen_size(picture))] += 1
                grey = grey and (picture.mode in ("1", "L") or picture.mode.startswith("I"))
        except Exception:
            continue
    return sides, grey


def usual_size(sides: Counter[int]) -> int:
    """Size for pictures with these short sides, as `dinit recipe` chooses it: 32, or a multiple of 4 below."""
    ordered = sorted(sides.elements())
    middle = ordered[len(ordered) // 2] if ordered else SMALLEST
    return 32 if middle >= 32 else max(middle // 4 * 4, SMALLEST)


def check_folder(folder: Path, overwrite: bool) -> None:
    """FileExistsError where a folder has other files than a classifier; OSError where it cannot be written."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        check_writable(folder)
        return
    if not is_classifier(folder):
        raise FileExistsError(f"{folder} holds other files than a classifier; choose another folder by --out")
    if not overwrite:
        raise FileExistsError(f"{folder} holds a classifier already; --overwrite replaces it, --out names another")


def open_data(job: ClassifierJob) -> SplitData:
    """Pictures of a job. ValueError for what the data set or the classifier refuses, before any training."""
    split = split_data(job.spec)
    data: ImageData = split.train
    if data.num_classes < 2:
        names = f"one class, {data.class_names[0]!r}" if data.num_classes else "no classes"
        raise ValueError(
            f"{split.name} has {names}: there is nothing to classify; a model of it is measured without a "
            f"classifier, by `dinit evaluate` (memorisation, pixels)"
        )
    if not SMALLEST <= data.image_size <= LARGEST:
        raise ValueError(
            f"{split.name} has pictures of {data.image_size} pixels; classifiers read {SMALLEST} to {LARGEST}"
        )
    return split


@dataclass(frozen=True)
class Trained:
    """A trained classifier, its folder, and what it was trained on."""

    model: ImageClassifier
    folder: Path
    job: ClassifierJob


def train_classifier(
    what: str | Path,
    out: str | Path | None = None,
    *,
    size: int | None = None,
    flip: bool = False,
    steps: int | None = None,
    minutes: float | None = 10.0,
    seed: int = 0,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
    report: Callable[[str], None] | None = None,
) -> Trained:
    """Train a classifier of a user's classes and write its folder, for `evaluate`.

    Args:
        what: a folder of class folders, a data set (name and options), a recipe, or a run's folder.
        out: its folder; None is RUN/classifier for a run, else classifiers/NAME with the data's name.
        size: pixels of a side, for a folder of class folders; None is by the pictures.
        flip: whether pictures are mirrored at random. Off suits text, digits and shoes; on helps with most photos.
        steps: optimiser steps; None is by the number of pictures.
        minutes: limit of the training's time; None is none, and then the same seed gives the same weights.
        seed: of everything random.
        overwrite: whether another classifier in the folder is replaced, once this one is trained.
        device: where it is trained.
        progress: see `train_image_classifier`.
        report: called with a sentence on the data and one on the training before it begins.

    Returns:
        The classifier, whose `card` has the held-out accuracy, with its folder.

    Raises:
        ValueError: data without two classes or that cannot be read.
        FileExistsError: a folder with something else in it.
    """
    job = classifier_job(what, size)
    folder = job.folder if out is None else user_path(out)
    check_folder(folder, overwrite)
    split = open_data(job)
    plan = usual_plan(len(split.train_rows), split.train.image_size, flip, seed)
    plan = plan if steps is None else replace(plan, steps=steps)
    if report is not None:
        for line in _described(split, plan, device, minutes):
            report(line)
    model = train_image_classifier(split, plan, minutes=minutes, device=device, progress=progress)
    model.save_pretrained(folder)
    return Trained(model, folder, job)


def _described(
    split: SplitData, plan: ClassifierPlan, device: torch.device | str, minutes: float | None
) -> Iterator[str]:
    data, side = split.train, split.train.image_size
    yield (
        f"{split.name}: {len(split.train_rows):,} pictures of {data.num_classes} classes, {side}×{side} "
        f"{'grey' if data.channels == 1 else 'RGB'}; {len(split.held_out_rows):,} held out ({split.rule})"
    )
    limit = "" if minutes is None else f"; at most {minutes:g} minute{'' if minutes == 1 else 's'}"
    mirrored = "mirrored at random" if plan.flip else "not mirrored (--flip)"
    yield (
        f"{plan.steps:,} steps of {plan.batch_size} on {device}, seed {plan.seed}; pictures moved by up to "
        f"{plan.shift} pixels, {mirrored}{limit}"
    )
