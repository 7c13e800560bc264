"""Editing without an inversion: noise is added to the image. Xu et al. 2024; Meng et al. 2022."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dinit.inverse.editing.base import EDITING_METHODS, Branch, Edited, EditingMethod, EditingTask
from dinit.inverse.editing.inversions import descend


@EDITING_METHODS.register("infedit")
@dataclass(frozen=True)
class InfEdit(EditingMethod):
    """Inversion-free editing: the source branch is the image with noise, whose prediction is known. Xu et al. 2024.

    At every time the image and the edit get the same noise; what the network predicts of the edit under the target
    class less what it predicts of the image under the source class is added to the image (virtual inversion). The
    source branch reconstructs exactly.

    Source: arXiv:2312.04965, Algorithm 2 (DDCM).
    """

    branches: ClassVar[tuple[Branch, ...]] = ("edit",)

    def run(self, task: EditingTask) -> Edited:
        points = task.points()
        source, target = task.condition(task.source), task.condition(task.target)
        edited = task.x
        for i, t in enumerate(points[:-1]):
            noise = t.floats.sigma * task.noise(i)
            of_image = task.predict(task.guided, t.floats.alpha * task.x + noise, t, source.at_step(i))
            of_edit = task.predict(task.guided, t.floats.alpha * edited + noise, t, target.at_step(i))
            edited = task.x + of_edit.x0 - of_image.x0
            task.report("edit", i, len(points) - 1, edited)
        return Edited(edited, task.x.clone(), task.nfe)


@EDITING_METHODS.register("sdedit")
@dataclass(frozen=True)
class SDEdit(EditingMethod):
    """Noise is added to the image, and taken away under the target class. Meng et al. 2022.

    Source: arXiv:2108.01073, Algorithm 1.

    Args:
        strength: Share of the run's steps that are taken, in (0, 1].

    Raises:
        ValueError: strength outside (0, 1].
    """

    branches: ClassVar[tuple[Branch, ...]] = ("edit", "reconstruction")

    strength: float = 0.6

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise ValueError(f"strength must be in (0, 1], got {self.strength}")

    def run(self, task: EditingTask) -> Edited:
        points = task.points()
        points = points[len(points) - 1 - max(1, round(self.strength * (len(points) - 1))) :]
        t = points[0].floats
        start = t.alpha * task.x + t.sigma * task.noise(0)
        edited = descend(task, start, points, "edit")
        nfe = task.nfe
        return Edited(edited, descend(task, start, points, "reconstruction"), nfe)
