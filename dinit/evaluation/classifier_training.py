"""Training of an image classifier on a data set, with held-out pictures that measure it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dinit.data import DATASETS, ImageData, epoch_order
from dinit.data.pixels import from_uint8
from dinit.devices import upload
from dinit.evaluation.features.image_classifier import (
    POOR,
    ClassifierCard,
    ImageClassifier,
    ImageClassifierConfig,
    predict,
)
from dinit.evaluation.real_images import has_splits
from dinit.evaluation.resampling import wilson
from dinit.files import user_path

EVERY = 5  # of each class, every fifth picture is held out where the data set has no test split
BATCH = 128
_IMAGES_SEEN, _MAX_EPOCHS, _MIN_STEPS = 480_000, 60, 300
_IN_MEMORY = 1 << 30  # bytes of pictures that are decoded once
_UNBALANCED = 3  # ratio of the largest class to the smallest from which on classes are drawn more evenly


@dataclass(frozen=True)
class SplitData:
    """Pictures to train a classifier on, and held-out ones, which may be of the same data set.

    Attributes:
        train: data set of the pictures to train on.
        train_rows: their indices in it.
        held_out: data set of the held-out pictures.
        held_out_rows: their indices in it.
        rule: how the held-out pictures were chosen.
        name: of the data: of its folder or file, or of the data set.
    """

    train: ImageData
    train_rows: NDArray[np.int64]
    held_out: ImageData
    held_out_rows: NDArray[np.int64]
    rule: str
    name: str


def split_data(spec: Mapping[str, Any]) -> SplitData:
    """Train and test split of a data set, or without one every fifth picture of each class as held out.

    A class of two to four pictures gives its last one, a class of one picture none.

    Args:
        spec: name and options of the data set. Its own split and mirroring do not count.

    Raises:
        ValueError: what the data set refuses.
    """
    options = {key: value for key, value in spec.items() if key not in ("split", "horizontal_flip")}
    if has_splits(options):
        train, test = (DATASETS.create(options, split=split) for split in ("train", "test"))
        return SplitData(train, np.arange(len(train)), test, np.arange(len(test)), "test split", data_name(options))
    data = DATASETS.create(options)
    mask = every_fifth(data.labels)
    rule = f"every {EVERY}th picture of each class"
    return SplitData(data, np.flatnonzero(~mask), data, np.flatnonzero(mask), rule, data_name(options))


def every_fifth(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask (N,) of each class's fifth, tenth, … picture; of its last one where it has two to four. labels: (N,)."""
    mask = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        mask[members[EVERY - 1 :: EVERY] if len(members) >= EVERY else members[1:][-1:]] = True
    return mask


def data_name(spec: Mapping[str, Any]) -> str:
    """Name of the last part of the data's path, or of the data set where it has none."""
    path = spec.get("path")
    return user_path(str(path)).resolve().name.split(".")[0] if path else str(spec["name"])


@dataclass(frozen=True)
class ClassifierPlan:
    """Length and augmentation of a classifier's training.

    Attributes:
        steps: optimiser steps.
        batch_size: pictures of a step.
        flip: whether half of the pictures are mirrored; off for text, digits and whatever has a left and a right.
        shift: pixels by which pictures are moved at most, in both directions.
        seed: of the first weights, the order and the augmentation.
        width: see `ImageClassifierConfig`.
        learning_rate: maximum of the one-cycle schedule.
    """

    steps: int
    batch_size: int = BATCH
    flip: bool = False
    shift: int = 1
    seed: int = 0
    width: int = 32
    learning_rate: float = 4e-3


def usual_plan(images: int, image_size: int, flip: bool = False, seed: int = 0) -> ClassifierPlan:
    """Plan by the number of pictures: 480,000 seen in all, at most 60 times each, and at least 300 steps.

    Args:
        images: number of pictures to train on.
        image_size: pixels of a side; pictures are moved by up to a fourteenth of it.
        flip: see `ClassifierPlan`.
        seed: likewise.
    """
    batch = min(BATCH, images)
    seen = min(_IMAGES_SEEN, _MAX_EPOCHS * images)
    return ClassifierPlan(max(_MIN_STEPS, seen // batch), batch, flip, max(1, round(image_size / 14)), seed)


class Pictures:
    """Pictures of a data set as uint8, decoded once where they fit in 1 GiB, else as they are needed.

    Args:
        data: the data set.
        rows: indices in it.
    """

    def __init__(self, data: ImageData, rows: NDArray[np.int64]) -> None:
        self.data, self.rows = data, rows
        self.labels = torch.from_numpy(data.labels[rows])
        size = data.channels * data.image_size**2
        self._kept: Tensor | None = self._decoded(rows) if len(rows) * size <= _IN_MEMORY else None

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, chosen: NDArray[np.int64]) -> Tensor:
        """Pictures (n, C, S, S) uint8 at positions `chosen`."""
        return self._decoded(self.rows[chosen]) if self._kept is None else self._kept[torch.from_numpy(chosen)]

    def _decoded(self, rows: NDArray[np.int64]) -> Tensor:
        pieces = [rows[start : start + 256].tolist() for start in range(0, len(rows), 256)]
        if not pieces:
            return torch.empty(0, self.data.channels, self.data.image_size, self.data.image_size, dtype=torch.uint8)
        with ThreadPoolExecutor() as pool:
            return torch.cat(list(pool.map(self.data.uint8_images, pieces)))


def drawn(labels: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """Order (N,) in which one epoch reads N pictures, each once; with repetitions where classes are unbalanced.

    Where the largest class has more than three times as many pictures as the smallest, pictures are drawn with a
    probability inverse to the root of their class's count. labels: (N,).
    """
    counts = np.bincount(labels)
    present = counts[counts > 0]
    if present.max() <= _UNBALANCED * present.min():
        return epoch_order(seed, epoch, len(labels))
    weights = np.where(counts > 0, counts, 1)[labels] ** -0.5
    return np.random.default_rng([seed, epoch]).choice(len(labels), len(labels), p=weights / weights.sum())


def augmented(images: Tensor, plan: ClassifierPlan, generator: torch.Generator) -> Tensor:
    """Pictures moved by whole pixels (the border is repeated), mirrored where the plan allows, half with noise.

    Args:
        images: (B, C, S, S) uint8.
        plan: limits of the augmentation.
        generator: of the random numbers.

    Returns:
        (B, C, S, S) float32 in [-1, 1].
    """
    batch, _, height, width = images.shape
    padded = F.pad(from_uint8(images), (plan.shift,) * 4, mode="replicate")
    dy, dx = torch.randint(2 * plan.shift + 1, (2, batch, 1), generator=generator)
    rows, columns = dy + torch.arange(height), dx + torch.arange(width)
    if plan.flip:
        mirrored = torch.rand(batch, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    moved = padded[torch.arange(batch)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    size = 0.1 * torch.rand(batch, 1, 1, 1, generator=generator)
    size[::2] = 0
    return (moved + size * torch.randn(moved.shape, generator=generator)).clamp(-1, 1)


Progress = Callable[[int, int, float], None]


def train_image_classifier(
    split: SplitData,
    plan: ClassifierPlan | None = None,
    *,
    minutes: float | None = None,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> ImageClassifier:
    """Train a classifier of a data set's classes, and measure it on held-out pictures.

    Args:
        split: the pictures.
        plan: length and augmentation; None is `usual_plan`.
        minutes: time that the steps may take; a plan that needs longer on this machine is shortened. None is no
            limit, and then the same seed gives the same weights.
        device: where it is trained.
        progress: called after every 20th step and the last, with steps done, steps in all, and seconds since the
            first.

    Returns:
        The classifier with its card, in evaluation mode and frozen, on the CPU.

    Raises:
        ValueError: fewer than two classes, a class without pictures, or a size that no classifier reads.
    """
    began = time.perf_counter()
    data = split.train
    config = ImageClassifierConfig(
        data.image_size, data.channels, tuple(data.class_names), plan.width if plan else 32
    )
    _check_classes(split)
    plan = plan or usual_plan(len(split.train_rows), data.image_size)
    pictures = Pictures(data, split.train_rows)
    steps = plan.steps if minutes is None else _affordable(config, plan, pictures, minutes, device)
    model = _fit(config, plan, steps, pictures, device, progress)
    held_out = Pictures(split.held_out, split.held_out_rows)
    facts = _measured(model, held_out)
    counts = np.bincount(data.labels[split.train_rows], minlength=len(config.class_names))
    model.card = ClassifierCard(
        data=split.name,
        fingerprint=data.fingerprint(),
        images=len(pictures),
        per_class=tuple(counts.tolist()),
        held_out_rule=split.rule,
        held_out=len(held_out),
        **facts,
        training={
            "seed": plan.seed,
            "steps": steps,
            "batch_size": plan.batch_size,
            "flip": plan.flip,
            "shift": plan.shift,
            "learning_rate": plan.learning_rate,
            "seconds": round(time.perf_counter() - began, 1),
            "device": str(device),
        },
    )
    return model.cpu()


def _check_classes(split: SplitData) -> None:
    names = split.train.class_names
    counts = np.bincount(split.train.labels[split.train_rows], minlength=len(names))
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise ValueError(
            f"{split.name} has no pictures of {', '.join(map(repr, empty[:8]))} to train on; remove the "
            f"class or add pictures"
        )


def _affordable(
    config: ImageClassifierConfig,
    plan: ClassifierPlan,
    pictures: Pictures,
    minutes: float,
    device: torch.device | str,
) -> int:
    """Steps of the plan that fit into the time, by a few steps of another network, which is thrown away."""
    short, tried = 3, 10
    marks: list[float] = []
    _fit(config, plan, short + tried, pictures, device, lambda _done, _all, seconds: marks.append(seconds), every=1)
    each = (marks[-1] - marks[short - 1]) / tried
    return max(1, min(plan.steps, int(60 * minutes / max(each, 1e-9))))


def _fit(
    config: ImageClassifierConfig,
    plan: ClassifierPlan,
    steps: int,
    pictures: Pictures,
    device: torch.device | str,
    progress: Progress | None,
    every: int = 20,
) -> ImageClassifier:
    """A network after `steps` steps by AdamW (weight decay 0.05) at a one-cycle rate, frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = ImageClassifier(config)
    model = model.to(device=device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    generator = torch.Generator().manual_seed(plan.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, plan.learning_rate, total_steps=max(steps, 2), pct_start=0.2
    )
    labels = pictures.labels.numpy()
    order, epoch = drawn(labels, plan.seed, 0), 0
    model.train()
    began, place = time.perf_counter(), 0
    for step in range(1, steps + 1):
        chosen = order[place : place + plan.batch_size].copy()  # torch warns of read-only arrays
        place += plan.batch_size
        if place + plan.batch_size > len(order):  # a batch of one picture has no variance to normalise by
            epoch, place = epoch + 1, 0
            order = drawn(labels, plan.seed, epoch)
        images = augmented(pictures[chosen], plan, generator)
        images = upload(images, torch.device(device)).to(memory_format=torch.channels_last)
        truth = upload(pictures.labels[chosen], torch.device(device))
        loss = F.cross_entropy(model(images), truth, label_smoothing=0.05)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None and (step % every == 0 or step == steps):
            progress(step, steps, time.perf_counter() - began)
    # in the order of memory in which it is read again, so that its figures are those of its folder to the last bit
    return model.to(memory_format=torch.contiguous_format).eval().requires_grad_(False)  # pyright: ignore


def _measured(model: ImageClassifier, held_out: Pictures) -> dict[str, Any]:
    """Accuracy on held-out pictures with its 95 % interval (Wilson), and that of each class."""
    classes = len(model.config.class_names)
    if not len(held_out):
        return {"class_accuracy": (None,) * classes}
    pieces = [
        predict(model, held_out[np.arange(start, min(start + 1024, len(held_out)))]).argmax(1)
        for start in range(0, len(held_out), 1024)
    ]
    right = torch.cat(pieces) == held_out.labels
    share = float(right.double().mean())
    low, high = wilson(share, len(held_out))
    each = [right[held_out.labels == number] for number in range(classes)]
    by_class = tuple(float(one.double().mean()) if len(one) else None for one in each)
    return {"accuracy": share, "low": low, "high": high, "class_accuracy": by_class}


def remarks(model: ImageClassifier) -> list[str]:
    """Sentences on a classifier that measures little: a poor accuracy, few held-out pictures, small classes."""
    card, names = model.card, model.config.class_names
    lines = []
    if not card.held_out:
        lines.append("no picture is held out, so its accuracy is not known; add pictures: five a class at least")
    elif card.high < POOR:
        lines.append(
            f"an accuracy of {card.accuracy:.1%} is poor: class accuracy and FID by this classifier show little. "
            "Check that every picture is in the folder of its class; more pictures or --minutes may help"
        )
    elif card.high - card.low > 0.2:
        half = (card.high - card.low) / 2
        lines.append(f"{card.held_out} held-out pictures are few: the accuracy is known to ±{half:.0%} only")
    if small := [name for name, count in zip(names, card.per_class, strict=False) if count < 20]:
        lines.append(f"fewer than 20 pictures to train on in {_listed(small)}")
    if card.per_class and max(card.per_class) > 10 * min(card.per_class):
        least = names[int(np.argmin(card.per_class))]
        most = names[int(np.argmax(card.per_class))]
        lines.append(
            f"unbalanced classes: {max(card.per_class):,} pictures of {most!r}, {min(card.per_class):,} of "
            f"{least!r}; rare classes were drawn more often"
        )
    weak = [(share, name) for share, name in zip(card.class_accuracy, names, strict=False) if share is not None]
    if weak and min(weak)[0] < 0.5 <= card.accuracy:
        lines.append(f"the class {min(weak)[1]!r} is classified rightly in {min(weak)[0]:.0%} only")
    return lines


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
