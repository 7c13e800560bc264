"""Speed of training on this machine: a few real steps on random pictures."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dinit.data import ImageData
from dinit.pipelines.launch import training_processes
from dinit.training.batches import Share
from dinit.training.build import make_backbone, make_network, make_objective
from dinit.training.recipe.model import Recipe
from dinit.training.recipe.suggest import Suggestion
from dinit.training.run.health import NoiseBins
from dinit.training.run.profile import Profile
from dinit.training.state import TrainState
from dinit.training.step import TrainingStep

_WARM_UP, _TIMED = 1, 3


class _Shape(ImageData):
    """A data set without pictures: the shape alone."""

    def __init__(self, channels: int, image_size: int, num_classes: int) -> None:
        self.channels, self.image_size, self.num_classes = channels, image_size, num_classes
        self.class_names = tuple(map(str, range(num_classes)))
        self.labels = np.zeros(1, np.int64)


def step_seconds(
    recipe: Recipe, channels: int, side: int, num_classes: int, cpu: bool = False, limit: float = 15.0
) -> float:
    """Seconds of an optimiser step of a recipe, without reading data: the median of three, after one.

    Args:
        recipe: What is trained; its data set is not opened.
        channels: Of the pictures or latents.
        side: Height = width of them.
        num_classes: Of the data set.
        cpu: Measure on the CPU even where there is a GPU.
        limit: Seconds after which no further step is taken.

    Returns:
        Seconds.

    Raises:
        ValueError: Settings that this machine cannot run.
    """
    data, loop = _Shape(channels, side, num_classes), recipe.training
    with (
        tempfile.TemporaryDirectory() as folder,
        _on_cpu(cpu),
        training_processes(recipe, Path(folder)) as accelerator,
        torch.random.fork_rng([accelerator.device] if accelerator.device.type == "cuda" else []),
    ):
        state = TrainState(recipe, make_network(recipe, make_backbone(recipe, data)), accelerator)
        bins, profile = NoiseBins(accelerator.device), Profile(False, accelerator.device)
        step = TrainingStep(recipe, data, make_objective(recipe), state, Share(loop.batch_size), bins, profile)
        source = _random_batches(loop.batch_size, channels, side)
        state.network.train()
        seconds = []
        for number in range(1, _WARM_UP + _TIMED + 1):
            start = time.perf_counter()
            float(step(number, source).loss)  # waits for the device
            seconds.append(time.perf_counter() - start)
            if sum(seconds) > limit:
                break
        state.release()
        return statistics.median(seconds[_WARM_UP:] or seconds)


class Speed:
    """Seconds of a step of suggested recipes, measured until the time for it is over, and then extrapolated.

    Args:
        cpu: Measure on the CPU even where there is a GPU.
        show: Called with the width and the pictures per second of each that was measured.
        limit: Seconds for all measurements.
    """

    def __init__(self, cpu: bool = False, show: Callable[[int, float], None] | None = None, limit: float = 15.0):
        self.cpu, self.show, self.limit = cpu, show, limit
        self.spent, self.last = 0.0, (0, 0.0)

    def __call__(self, suggestion: Suggestion) -> float:
        """Seconds of a step."""
        width, (known, seconds) = suggestion.choice.width, self.last
        if known and self.spent + _WARM_UP * 2 * seconds + _TIMED * seconds > self.limit:
            return seconds * (width / known) ** 1.3
        survey, start = suggestion.survey, time.perf_counter()
        channels = 4 if suggestion.vae else survey.channels
        seconds = step_seconds(
            suggestion.recipe(), channels, suggestion.side, len(survey.counts), self.cpu, self.limit - self.spent
        )
        self.spent += time.perf_counter() - start
        self.last = width, seconds
        if self.show is not None:
            self.show(width, suggestion.batch / seconds)
        return seconds


def _random_batches(batch: int, channels: int, side: int) -> Iterator[tuple[Tensor, Tensor]]:
    images = torch.rand(batch, channels, side, side) * 2 - 1
    while True:
        yield images, torch.zeros(batch, dtype=torch.int64)


@contextmanager
def _on_cpu(wanted: bool) -> Iterator[None]:
    """Accelerate's own switch, for the block."""
    before = os.environ.get("ACCELERATE_USE_CPU")
    if wanted:
        os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        yield
    finally:
        if wanted and before is None:
            del os.environ["ACCELERATE_USE_CPU"]
        elif wanted:
            os.environ["ACCELERATE_USE_CPU"] = str(before)
