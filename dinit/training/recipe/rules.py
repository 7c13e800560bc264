"""Rules of `dinit recipe`: from pictures, a machine and minutes to the numbers of a recipe. Pure functions.

Their starting point is the shipped recipe glyphs-32: a DiCo of width 16 at 32×32 whose letters could be read after
9,600 steps of 32 pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Widths of the backbone that are tried: channels at full resolution."""
LATENT_FROM = 128
"""Sides from which on a recipe trains on latents of an autoencoder, which are 8 times smaller."""
SHARE = 0.95
"""Of the minutes, for training steps; the rest is for previews and checkpoints."""
ONE_WAY = 0.05
"""Shared asymmetry from which on pictures are not mirrored. It is 0.37 for Fashion-MNIST and for digits, 0.08 for
glyphs, 0.02 for glyphs of the symmetric letters, and 0 where every picture faces a random way."""
FEW = 20
"""A class of fewer pictures is named."""
LEAST = 2_000
"""Steps; fewer leave a network half trained, whatever the set."""
UNEVEN = 10
"""Ratio of the largest to the smallest class from which on it is named."""

_ENOUGH = {"cpu": 8_000, "gpu": 30_000}  # steps, before a wider network is worth its time
_EPOCHS = 1_000  # after as many a small set is learnt by heart
_OFTEN = 200  # epochs from which on dropout is worth its slower start
_BATCH = {"cpu": 32, "gpu": 128}
_WIDEST = ((1_000, 24), (5_000, 32), (20_000, 64), (100_000, 128))  # below as many pictures
_DECAYS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999)
_RATE, _RATE_WIDTH = 1.2e-2, 16
_CALIBRATION = 0.32, 32 * 32 * 32  # seconds of a step of glyphs-32 on 2 cores, and pixels in it


def data_size(short_side: int, gpu: bool, minutes: float) -> int:
    """Side to which the pictures of a folder are scaled.

    Args:
        short_side: median of the pictures' shorter sides, in pixels.
        gpu: whether training is on a GPU.
        minutes: of the training.

    Returns:
        8 .. 64, a multiple of 4; or 256, on a GPU, for which latents are encoded.
    """
    if short_side < 32:
        return max(short_side // 4 * 4, 8)
    if gpu:
        return 256 if short_side >= 192 else min(short_side // 4 * 4, 64)
    return 64 if short_side >= 64 and minutes >= 180 else 32


def check_minutes(minutes: float) -> None:
    """ValueError unless positive and finite."""
    if not 0 < minutes < 1e6:
        raise ValueError(f"--minutes must be positive, got {minutes:g}")


def check_size(size: int) -> None:
    """ValueError for a side that no recipe here is for."""
    if size >= LATENT_FROM and size % 32:
        raise ValueError(f"--size of {LATENT_FROM} or more, for latents, must be a multiple of 32, got {size}")
    if size < 8 or size % 4:
        raise ValueError(f"--size must be a multiple of 4, at least 8, got {size}")


def backbone(side: int, width: int) -> dict[str, Any]:
    """Backbone for pictures or latents of this side: DiCo, or DiT where the side is no multiple of 4."""
    if side % 4 == 0:
        return {"name": "dico", "hidden_size": width, "depth": [1, 2, 6 if side <= 32 else 8, 2, 1]}
    patch = next((p for p in (2, 3, 5, 7) if side % p == 0 and side // p <= 32), 1)
    return {"name": "dit", "patch_size": patch, "hidden_size": 4 * width, "depth": 6, "num_heads": width // 8}


def batch_size(gpu: bool, images: int) -> int:
    """Pictures of a step; fewer on a GPU where the set is small."""
    return _BATCH["gpu" if gpu and images >= 2_000 else "cpu"]


def widest(images: int) -> int:
    """The largest width for as many pictures: a wider network learns a small set by heart."""
    return next((width for limit, width in _WIDEST if images < limit), WIDTHS[-1])


@dataclass(frozen=True)
class Choice:
    """Width and number of steps.

    Attributes:
        width: channels of the backbone at full resolution.
        seconds: of a step.
        steps: of the run.
        enough: steps that were wanted.
        limit: 'time', where more steps would not fit into it; 'pictures', where they would repeat the pictures
            too often.
    """

    width: int
    seconds: float
    steps: int
    enough: int
    limit: str

    @property
    def minutes(self) -> float:
        """Of the run, with previews and checkpoints."""
        return self.steps * self.seconds / 60 / SHARE

    @property
    def minutes_for_enough(self) -> float:
        """Of a run of as many steps as were wanted."""
        return self.enough * self.seconds / 60 / SHARE


def choose(step_seconds: Callable[[int], float], images: int, batch: int, minutes: float, gpu: bool) -> Choice:
    """The widest network that leaves enough steps in the time, and the steps.

    Args:
        step_seconds: seconds of a step at a width; called with increasing widths, until one is too slow.
        images: pictures of the set.
        batch: pictures of a step.
        minutes: of the training.
        gpu: whether training is on a GPU.

    Returns:
        The choice.
    """
    most = max(LEAST, _EPOCHS * images // batch)
    enough = min(_ENOUGH["gpu" if gpu else "cpu"], most)
    width, seconds, time = WIDTHS[0], step_seconds(WIDTHS[0]), 60 * SHARE * minutes
    for wider in WIDTHS[1:]:
        if wider > widest(images) or seconds * enough > time:
            break
        slower = step_seconds(wider)
        if slower * enough > time:
            break
        width, seconds = wider, slower
    fits = time / seconds
    steps = max(rounded(min(fits, most)), 10)
    return Choice(width, seconds, steps, enough, "time" if fits < most else "pictures")


def estimated_step(side: int, batch: int, width: int, cores: int, gpu: bool) -> float:
    """Seconds of a step, estimated and not measured: from a step of glyphs-32 on 2 cores.

    Time grows with the pixels, and from width 16 on a little faster than with the width. A GPU is taken as 25
    times as fast, and no step as faster than 20 ms there.
    """
    seconds, pixels = _CALIBRATION
    work = seconds * (batch * side**2 / pixels) * (width / 16) ** 1.3
    if gpu:
        return max(work / 25, 0.02)
    return work * 2 / min(max(cores, 1), 8)


def rounded(number: float) -> int:
    """Two leading digits, down: 9,648 is 9,600."""
    unit = 10 ** max(math.floor(math.log10(number)) - 1, 0) if number >= 1 else 1
    return int(number // unit * unit)


def learning_rate(width: int) -> float:
    """Muon's rate: glyphs-32's at width 16, and lower as 1/√width.

    Its update of a matrix has a spectral norm of 0.2 · rate · √(larger side), so that the relative step stays.
    """
    return float(f"{_RATE * math.sqrt(_RATE_WIDTH / width):.2g}")


def warmup_steps(steps: int) -> int:
    """A fiftieth of the run, 10 .. 500 steps, always below `steps`."""
    return min(max(rounded(steps / 50), 10), 500, steps - 1)


def ema_decay(steps: int) -> float:
    """Decay whose average is over about a tenth of the run: 1 / (1 - decay) is near steps / 10."""
    return min(_DECAYS, key=lambda decay: abs(math.log((1 - decay) * steps / 10)))


def dropout(seen: float) -> float:
    """Dropout of the backbone's activations where each picture is seen so often in a run."""
    return 0.1 if seen >= _OFTEN else 0.0


def every(steps: int, times: int) -> int:
    """Interval for that many events in a run or a few more: 1, 2, 2.5 or 5 times a power of 10."""
    unit = 10 ** math.floor(math.log10(max(steps / times, 1)))
    return max(int(unit * factor) for factor in (1, 2, 2.5, 5) if factor == 1 or unit * factor <= steps / times)


def small_classes(counts: Mapping[str, int]) -> list[str]:
    """Classes of fewer than `FEW` pictures."""
    return [name for name, count in counts.items() if count < FEW]


def is_uneven(counts: Mapping[str, int]) -> bool:
    """Whether the largest class has `UNEVEN` times as many pictures as the smallest, or more."""
    return bool(counts) and max(counts.values()) >= UNEVEN * min(counts.values())
