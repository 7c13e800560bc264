"""Editing methods: from an image of one class to the same image of another. The contract and the registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, RunContext, Scales
from dinit.diffusion.denoiser import check_denoiser
from dinit.registry import Registry
from dinit.samplers.base import SAMPLERS, GridLike, Sampler
from dinit.samplers.guidance.base import apply_guidance
from dinit.samplers.noise import NoiseSource
from dinit.samplers.points import sampling_points

EDITING_METHODS: Registry[type[EditingMethod]] = Registry("editing method", "dinit.inverse.editing")


@dataclass(frozen=True)
class Edited:
    """The result of an edit.

    Attributes:
        x: (B, C, H, W), the edited images.
        reconstruction: (B, C, H, W), the images as the method makes them again of the source class: where they
            differ from those given, the edit loses what it should keep.
        nfe: Network evaluations per image, of the edit alone; conditions evaluated together count as one.
    """

    x: Tensor
    reconstruction: Tensor
    nfe: int


Branch = Literal["inversion", "edit", "reconstruction"]


@dataclass(frozen=True)
class EditingStep:
    """A step of an edit that was just taken.

    Attributes:
        branch: What it is a step of: the way to noise, the edited images, or the given ones made again.
        index: Of the step in its branch, from 0.
        total: Steps of the branch.
        x0: (B, C, H, W), the prediction of the branch's images.
    """

    branch: Branch
    index: int
    total: int
    x0: Tensor


@dataclass
class EditingTask:
    """An edit with all that its methods share.

    Attributes:
        denoiser: Without guidance; inversions follow it.
        guided: With guidance; what the edited image is made with.
        x: (B, C, H, W), the images.
        source: Their classes, (B,).
        target: The classes that they are to have, (B,).
        steps: Of the sampler.
        grid: Where the steps fall; None for the sampler's own.
        noise_source: Of all draws, keyed by image.
        on_step: Called after every step; None for nothing.
        nfe: Evaluations so far.
    """

    denoiser: Denoiser
    guided: Denoiser
    x: Tensor
    source: Tensor
    target: Tensor
    steps: int
    grid: GridLike | None
    noise_source: NoiseSource
    on_step: Callable[[EditingStep], object] | None = None
    nfe: int = 0

    def points(self, sampler: Sampler | str = "ddim") -> list[Scales]:
        """The scales of the run's times, noisiest first. The image stands at the last, as in published practice."""
        process = self.denoiser.process
        grid = SAMPLERS.create(sampler).grid_for(process) if self.grid is None else self.grid
        return sampling_points(self.denoiser, self.steps, grid, "state")

    def condition(self, labels: Tensor) -> Condition:
        """The condition of (B,) labels, in a run."""
        cond = self.denoiser.condition(labels, len(self.x), self.x.device)
        return cond.in_run(RunContext(noise_source=self.noise_source, steps=self.steps))

    def predict(self, denoiser: Denoiser, x: Tensor, t: Scales, cond: Condition) -> Denoised:
        """An evaluation, counted."""
        self.nfe += 1
        return denoiser(x, t, cond)

    def report(self, branch: Branch, index: int, total: int, x0: Tensor) -> None:
        """A step that was taken, as `EditingStep` has it."""
        if self.on_step is not None:
            self.on_step(EditingStep(branch, index, total, x0))

    def noise(self, number: int) -> Tensor:
        """A draw of standard normal noise, (B, C, H, W)."""
        return self.noise_source.normal("edit", number, self.x)


@dataclass(frozen=True)
class EditingMethod(ABC):
    """A way of editing. Subclasses are frozen dataclasses.

    Attributes:
        branches: What its steps are of, in their order; branches that take turns count as the edit's.
    """

    registry_name: ClassVar[str]
    branches: ClassVar[tuple[Branch, ...]] = ("inversion", "edit", "reconstruction")

    def edit(
        self,
        denoiser: Denoiser,
        x: Tensor,
        source: Tensor | Sequence[int],
        target: Tensor | Sequence[int],
        steps: int = 50,
        *,
        grid: GridLike | None = None,
        guidance: Any = None,
        seed: int | Sequence[int] = 0,
        noise_source: NoiseSource | None = None,
        on_step: Callable[[EditingStep], object] | None = None,
    ) -> Edited:
        """Images of the source classes as images of the target classes.

        Args:
            denoiser: A network read as a posterior mean, with classes.
            x: (B, C, H, W), the images, as the denoiser's clean ones are.
            source: Their classes, one an image.
            target: The classes that they are to have, one an image.
            steps: Of the sampling run, at least 2.
            grid: Where they fall; None for the sampler's own grid.
            guidance: Of the edited image, as `apply_guidance` takes it. Inversions follow the conditional model.
            seed: Of the noise, one or one an image.
            noise_source: In place of the seed's.
            on_step: Called after every step with its `EditingStep`, for a display.

        Raises:
            ValueError: A class that is not there, a network without classes, fewer than 2 steps, or a denoiser
                that lacks what the method needs; all before the first evaluation.
        """
        check_denoiser(denoiser)
        if denoiser.num_classes < 1:
            raise ValueError("editing needs a network with classes, and this one is unconditional")
        if steps < 2:
            raise ValueError(f"an edit needs at least 2 steps, got {steps}")
        task = EditingTask(
            denoiser,
            apply_guidance(denoiser, guidance),
            x,
            denoiser.check_labels(source, len(x), x.device),
            denoiser.check_labels(target, len(x), x.device),
            steps,
            grid,
            noise_source or NoiseSource.from_seed(seed, len(x)),
            on_step,
        )
        self.check(task)
        with torch.no_grad():
            return self.run(task)

    def check(self, task: EditingTask) -> None:  # noqa: B027 (most methods run anywhere)
        """ValueError where the method cannot run."""

    @abstractmethod
    def run(self, task: EditingTask) -> Edited:
        """The edit of a task that was checked."""


def ddim_step(d: Denoised, s: Scales) -> Tensor:
    """DDIM's step to the time of s, in either direction, (B, C, H, W)."""
    return d.combination(0.0, s.floats.alpha, s.floats.sigma)
