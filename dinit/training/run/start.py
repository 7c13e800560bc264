"""Lines at the start of a run: data, network, device and steps, and settings that do not suit them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from dinit.training.averaging.ema import ema_decay
from dinit.training.finetune.adapters import trained

if TYPE_CHECKING:
    from dinit.training.step import TrainingLoop

_FORGOTTEN = 0.05  # share of the first weights in the averaged ones at the end, from which on a line is shown


def start_lines(run: TrainingLoop) -> Iterator[str]:
    """What is trained, on what, for how long; then settings that do not suit it.

    Args:
        run: The loop, before its first step of this session.

    Yields:
        Lines.
    """
    recipe, data, loop = run.recipe, run.data, run.recipe.training
    classes = f"{data.num_classes} classes" if data.num_classes else "without classes"
    size = f"{data.channels}×{data.image_size}×{data.image_size}"
    source = recipe.data.options.get("path", recipe.data.name)
    yield f"data: {len(data):,} pictures, {classes}, {size} ({source})"
    some, all_ = trained(run.state.backbone)
    partly = "" if some == all_ else f", {some:,} of them trained"
    yield f"network: {recipe.backbone.name}, {all_:,} parameters{partly}"
    yield f"device: {_device(run)}, {loop.precision}"
    passes = loop.steps * loop.batch_size / max(len(data), 1)
    yield f"steps: {run.step + 1:,} to {loop.steps:,} of {loop.batch_size} pictures, {passes:.3g} times the data"
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


def _device(run: TrainingLoop) -> str:
    device, count = run.accelerator.device, run.accelerator.num_processes
    several = f", {count} processes" if count > 1 else ""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)}){several}"
    return (
        f"{device} ({torch.get_num_threads()} threads){several}" if device.type == "cpu" else f"{device}{several}"
    )


def _share_of_first(decay: float, warmup: bool, steps: int) -> float:
    """Share of the weights before step 1 in the average after the last: the product of the decays."""
    share = 1.0
    for step in range(1, min(steps, 100_000) + 1):
        share *= ema_decay(step, decay, warmup)
        if share < _FORGOTTEN:
            break
    return share
