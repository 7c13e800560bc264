"""Lines at the start of a run, about settings that do not suit its data, its length or this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dinit.training.averaging.ema import ema_decay

if TYPE_CHECKING:
    from dinit.training.step import TrainingLoop

_FORGOTTEN = 0.05  # share of the first weights in the averaged ones at the end, from which on a line is shown


def start_lines(run: TrainingLoop) -> Iterator[str]:
    """Settings that do not suit the data, the number of steps or the machine; nothing is wrong with the run.

    Args:
        run: The loop, before its first step of this session.

    Yields:
        Lines.
    """
    recipe, data, loop = run.recipe, run.data, run.recipe.training
    if loop.batch_size > len(data):
        yield f"training.batch_size is {loop.batch_size} of {len(data)} pictures: a step has some more than once"
    if loop.workers > usable_workers(loop.workers):
        yield f"training.workers is {usable_workers(loop.workers)} in place of {loop.workers}, for want of cores"
    first = _share_of_first(recipe.ema.decay, recipe.ema.warmup, loop.steps)
    if first > _FORGOTTEN:
        yield (
            f"ema.decay {recipe.ema.decay:g} is long for {loop.steps} steps: {first:.0%} of the averaged weights "
            "are the random first ones; ema.warmup: true or a smaller decay leaves them out"
        )


def usable_workers(workers: int) -> int:
    """As many reading processes as this process has cores, or fewer; their number changes no batch."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(workers, cores)


def _share_of_first(decay: float, warmup: bool, steps: int) -> float:
    """Share of the weights before step 1 in the average after the last: the product of the decays."""
    share = 1.0
    for step in range(1, min(steps, 100_000) + 1):
        share *= ema_decay(step, decay, warmup)
        if share < _FORGOTTEN:
            break
    return share
