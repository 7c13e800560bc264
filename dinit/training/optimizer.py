"""AdamW and the learning rate of each optimiser step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from dinit.training.recipe import OptimizerSection, ScheduleSection


def make_optimizer(parameters: Iterable[nn.Parameter], section: OptimizerSection) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) in its fused form, where there is one: small networks gain most.

    Give it parameters that are on their device already.
    """
    chosen = list(parameters)
    return torch.optim.AdamW(
        chosen,
        lr=section.lr,
        betas=section.betas,
        eps=section.eps,
        weight_decay=section.weight_decay,
        fused=chosen[0].device.type in ("cpu", "cuda"),
    )


def learning_rate(step: int, total: int, peak: float, schedule: ScheduleSection) -> float:
    """The learning rate of optimiser step `step` = 1 .. total, whatever the number of processes.

    Linear from peak / (warmup_steps + 1) to peak over warmup_steps; then constant, or a half cosine that
    reaches peak * floor at the last step. A pure function: a resumed run needs the step number alone.
    """
    if step <= schedule.warmup_steps:
        return peak * step / (schedule.warmup_steps + 1)
    if schedule.kind == "constant":
        return peak
    done = (step - schedule.warmup_steps) / max(total - schedule.warmup_steps, 1)
    return peak * (schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * done)) / 2)
