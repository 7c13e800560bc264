"""First interval of a borrowed scheduler, measured on Gaussian data, for which its result is known."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dinit.checkpoints.interop.scheduler_config import FAILURES, arguments
from dinit.checkpoints.interop.scheduler_run import SchedulerRun, learns_variance
from dinit.diffusion import Denoised, Process, Scales
from dinit.samplers.base import StepNoise

DATA_STD = 0.5  # of the data that it is measured on
WARNED = 1.25  # the spread after the first step, over the exact one: that of sound steps is below 1.1
REFUSED = 2.0
_SAMPLES = 2048


class _Normal:
    """Normal draws, the same in every run."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self.generator, dtype=like.dtype)


def spread_after_first(run: SchedulerRun, process: Process) -> float:
    """The standard deviation after a run's first step, over the exact one; 1 for a run of one step.

    Args:
        run: A new run, which is used up.
        process: That of the run.

    Returns:
        The ratio; inf where it is not finite.
    """
    if len(run.groups) < 2:
        return 1.0
    calls, s = run.groups[0], run.groups[1][0].state
    t, source = calls[0].state, _Normal()
    pixel = source.normal("initial", 0, torch.empty(_SAMPLES, 1, 1, 1)) * run.start_std

    def exact(x: Tensor, k: Scales) -> Denoised:
        mean = k.alpha * DATA_STD**2 / ((k.alpha * DATA_STD) ** 2 + k.sigma**2)
        return Denoised(x, mean * x, k, torch.full_like(x, 0.5) if learns_variance(run.scheduler) else None)

    denoise: Any = exact
    found = run.step(denoise, pixel, t, s, StepNoise(source, 0, len(calls))).std()
    ratio = float(found / ((s.alpha * DATA_STD) ** 2 + s.sigma**2).sqrt())
    return ratio if math.isfinite(ratio) else math.inf


def check_first_interval(sampler: Any, process: Process, steps: int) -> None:
    """ValueError where a scheduler's first step takes Gaussian data far off; a warning where it is somewhat off.

    Args:
        sampler: A SchedulerSampler.
        process: The denoiser's path.
        steps: Steps of the run.
    """
    ratio = _measured(sampler, process, steps)
    if ratio <= WARNED:
        return
    start = float(sampler.run(process, steps).groups[0][0].state.noise_level)
    found = (
        f"{sampler.scheduler} in {steps} steps begins at noise level {start:.4g}, and its first step leaves "
        f"Gaussian data with {ratio:.3g} times its spread: images would be off by as much. "
        f"{_advice(sampler, process, steps)}"
    )
    if ratio >= REFUSED:
        raise ValueError(found)
    warnings.warn(found, UserWarning, stacklevel=2)


def _measured(sampler: Any, process: Process, steps: int) -> float:
    return spread_after_first(sampler.run(process, steps), process)


def _advice(sampler: Any, process: Process, steps: int) -> str:
    """What was tried and works."""
    ours = "take one of dinit's samplers (sampler='dpmpp-2m')"
    tried: list[tuple[str, Any, int]] = []
    if sampler.options:
        tried.append(("Leave out its options", replace(sampler, options={}), steps))
    for key, value in (("timestep_spacing", "leading"), ("use_karras_sigmas", True)):
        if key in arguments(sampler.scheduler) and sampler.config.get(key) != value:
            changed = replace(sampler, config={**sampler.config, key: value})
            tried.append((f"Make it with {key}={value!r}", changed, steps))
    tried += [(f"Take {more} steps or more", sampler, more) for more in (10, 25, 50) if more > steps]
    for advice, other, count in tried:
        try:
            if _measured(other, process, count) <= WARNED:
                return f"{advice}, or {ours}"
        except FAILURES:
            continue
    return f"{ours[0].upper()}{ours[1:]}"
