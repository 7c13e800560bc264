"""Editing by embeddings that are fitted to the image: of the null class, or of its own. Mokady 2023; Dong 2023."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised
from dinit.inverse.editing.base import EDITING_METHODS, Branch, Edited, EditingMethod, EditingTask, ddim_step
from dinit.inverse.editing.inversions import pivots
from dinit.samplers.guidance.base import batched_call, check_null_class
from dinit.samplers.guidance.gradient import differentiable


def _fit(start: Tensor, iterations: int, lr: float, step: Callable[[Tensor], Tensor], wanted: Tensor) -> Tensor:
    """Embeddings (B, ...) whose step comes near to `wanted`, by Adam on each image's own squared error."""
    with torch.inference_mode(False), torch.enable_grad():
        fitted = start.detach().clone().requires_grad_()
        adam = torch.optim.Adam([fitted], lr=lr)
        for _ in range(iterations):
            adam.zero_grad()
            # A mean of each image, and their sum: no image's steps depend on how many others there are.
            loss = (step(fitted) - wanted.detach().clone()).square().flatten(1).mean(1).sum()
            (fitted.grad,) = torch.autograd.grad(loss, fitted)
            adam.step()
    return fitted.detach()


@EDITING_METHODS.register("null-embedding")
@dataclass(frozen=True)
class NullEmbedding(EditingMethod):
    """Null-text inversion: the embedding of the null class is fitted at every step. Mokady et al. 2023.

    CFG at `scale` under the source class leaves the states of DDIM's inversion; at every step the embedding of the
    null class is fitted so that it comes back to them. The edit is CFG under the target class with those
    embeddings; guidance that is given to the edit has no part in it.

    Source: arXiv:2211.09794, Algorithm 1.

    Args:
        scale: Of CFG; 7.5 in the paper, for text. 1 would leave nothing to fit.
        iterations: Of Adam in each step, at least 1, of an evaluation and a backward pass each; 10 in the paper.
        lr: Of Adam, above 0.

    Raises:
        ValueError: An option out of its range; from an edit, a network without a null class.
    """

    branches: ClassVar[tuple[Branch, ...]] = ("inversion", "edit")

    scale: float = 2.0
    iterations: int = 10
    lr: float = 0.01

    def __post_init__(self) -> None:
        if self.scale <= 1 or self.iterations < 1 or self.lr <= 0:
            raise ValueError(
                f"scale must be above 1, iterations at least 1 and lr above 0, got {self.scale}, "
                f"{self.iterations} and {self.lr}"
            )

    def check(self, task: EditingTask) -> None:
        check_null_class(task.denoiser, type(self).__name__, "another method, such as ddim")

    def run(self, task: EditingTask) -> Edited:
        points = task.points()
        states = pivots(task, points)
        source, target = task.condition(task.source), task.condition(task.target)
        x = again = states[0]
        null = source.null().embedding
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            here = source.at_step(i)
            given = task.predict(task.denoiser, again, t, here)

            def step(embedding: Tensor, t=t, s=s, given=given, here=here, again=again) -> Tensor:
                other = replace(here.null(), embedding=embedding)
                return ddim_step(
                    self._guided(given, task.predict(task.denoiser, again, differentiable(t), other)), s
                )

            null = _fit(null, self.iterations, self.lr, step, states[i + 1])
            again = step(null)
            there = target.at_step(i)
            task.nfe += 1
            pair = batched_call(task.denoiser, x, t, [there, replace(there.null(), embedding=null)])
            d = self._guided(*pair)
            x = ddim_step(d, s)
            task.report("edit", i, len(points) - 1, d.x0)
        return Edited(x, again, task.nfe)

    def _guided(self, given: Denoised, null: Denoised) -> Denoised:
        return Denoised(given.x_t, null.x0 + self.scale * (given.x0 - null.x0), given.scales)


@EDITING_METHODS.register("condition-embedding")
@dataclass(frozen=True)
class ConditionEmbedding(EditingMethod):
    """Prompt tuning inversion: the embedding of the class is fitted to the image at every step. Dong et al. 2023.

    The embedding of the source class is fitted so that DDIM comes back to the states of its inversion; the edit
    runs with the target's embedding, to which `keep` times what the fit has changed is added.

    Source: arXiv:2305.04441, Section 4; there the two are interpolated.

    Args:
        keep: Share of the fitted change that the target gets, in [0, 1].
        iterations: Of Adam in each step, at least 1, of an evaluation and a backward pass each.
        lr: Of Adam, above 0.

    Raises:
        ValueError: An option out of its range.
    """

    branches: ClassVar[tuple[Branch, ...]] = ("inversion", "edit")

    keep: float = 0.8
    iterations: int = 10
    lr: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 1 or self.iterations < 1 or self.lr <= 0:
            raise ValueError(
                f"keep must be in [0, 1], iterations at least 1 and lr above 0, got {self.keep}, {self.iterations} "
                f"and {self.lr}"
            )

    def run(self, task: EditingTask) -> Edited:
        points = task.points()
        states = pivots(task, points)
        source, target = task.condition(task.source), task.condition(task.target)
        x = again = states[0]
        own = source.embedding
        fitted = own
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            here = source.at_step(i)

            def step(embedding: Tensor, t=t, s=s, here=here, again=again) -> Tensor:
                cond: Condition = replace(here, embedding=embedding)
                return ddim_step(task.predict(task.denoiser, again, differentiable(t), cond), s)

            fitted = _fit(fitted, self.iterations, self.lr, step, states[i + 1])
            again = step(fitted)
            there = target.at_step(i)
            there = replace(there, embedding=there.embedding + self.keep * (fitted - own))
            d = task.predict(task.guided, x, t, there)
            x = ddim_step(d, s)
            task.report("edit", i, len(points) - 1, d.x0)
        return Edited(x, again, task.nfe)
