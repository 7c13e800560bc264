"""Callbacks after a sampling step: dinit's, which take one `Step`, and diffusers', which take four arguments."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from dinit.inverse.editing.base import EditingStep
from dinit.samplers import Step

StepCallback = Callable[[Step], object]
DiffusersCallback = Callable[[Any, int, Any, dict[str, Any]], object]
Callback = StepCallback | DiffusersCallback


class Trajectory:
    """A callback that keeps the posterior mean of every step, for `callback_on_step_end`."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Tensor]] = defaultdict(list)

    def __call__(self, step: Step | EditingStep) -> None:
        """Keep the posterior mean of `step`."""
        self._parts[step.index].append(step.x0)

    @property
    def frames(self) -> list[Tensor]:
        """The posterior mean after each step, (N, C, H, W) of the images of all batches."""
        return [torch.cat(self._parts[index]) for index in sorted(self._parts)]


def step_callback(callback: Any, pipe: Any) -> StepCallback | None:
    """The callback as a function of one `Step`.

    Args:
        callback: None; a callable that takes one argument, the `Step`; or one that takes diffusers' four,
            (pipe, i, t, kwargs). One that takes either number gets the `Step`.
        pipe: the Pipeline, the first of the four. `t` is the number that its network is given for the time, which
            is diffusers' timestep where the network was trained on a chain of betas.

    Raises:
        ValueError: the callback is not callable, or takes another number of arguments.
    """
    if callback is None:
        return None
    if not callable(callback):
        raise ValueError(f"callback_on_step_end must be callable, got {callback!r}")
    if _takes(callback, 1):
        return callback
    if not _takes(callback, 4):
        raise ValueError(
            "callback_on_step_end must take one argument, the Step, or diffusers' four, (pipe, i, t, kwargs); got "
            f"{callback!r}"
        )

    def call_with_four(step: Step) -> None:
        timestep = pipe.parameterization.noise_label(pipe.process, pipe.process.scales(step.t))
        changed = callback(pipe, step.index, timestep, {"latents": step.x_s})
        if isinstance(changed, Mapping) and changed.get("latents", step.x_s) is not step.x_s:
            raise ValueError(
                "callback_on_step_end returned other latents: a callback cannot change the images, which depend on "
                "label, key and settings alone; write a guidance (dinit.samplers.guidance) for that"
            )

    return call_with_four


def _takes(function: Callable[..., Any], count: int) -> bool:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions written in C have no signature
        return count == 1
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
