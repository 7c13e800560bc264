"""Editing by inversion: to the noise under the source class, and back under the target class."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.inverse.editing.base import EDITING_METHODS, Branch, Edited, EditingMethod, EditingTask, ddim_step
from dinit.samplers.base import Sampler, Step
from dinit.samplers.guidance.gradient import differentiable
from dinit.samplers.inversion.bdia import BDIADDIM
from dinit.samplers.inversion.edict import EDICT
from dinit.samplers.inversion.invert import ascend, split


def pivots(task: EditingTask, points: list[Scales]) -> list[Tensor]:
    """The states of DDIM's inversion at the points, noisiest first; the last is the image itself."""
    cond, states = task.condition(task.source), [task.x]
    for i in range(len(points) - 1, 0, -1):
        d = task.predict(task.denoiser, states[-1], points[i], cond.at_step(i - 1))
        states.append(ddim_step(d, points[i - 1]))
        task.report("inversion", len(points) - 1 - i, len(points) - 1, d.x0)
    return states[::-1]


def descend(task: EditingTask, x: Tensor, points: list[Scales], branch: Branch) -> Tensor:
    """DDIM under the guided denoiser from the state x at the first of the points to the last."""
    cond = task.condition(task.target if branch == "edit" else task.source)
    for i, (t, s) in enumerate(itertools.pairwise(points)):
        d = task.predict(task.guided, x, t, cond.at_step(i))
        x = ddim_step(d, s)
        task.report(branch, i, len(points) - 1, d.x0)
    return x


@EDITING_METHODS.register("ddim")
@dataclass(frozen=True)
class DDIMEdit(EditingMethod):
    """DDIM inversion under the source class, then DDIM under the target class. Song et al. 2021 (DDIM).

    Its round trip has an error of first order in the steps, more under guidance. Source: arXiv:2010.02502, Section
    4.3.
    """

    def run(self, task: EditingTask) -> Edited:
        points = task.points()
        start = pivots(task, points)[0]
        edited = descend(task, start, points, "edit")
        nfe = task.nfe
        return Edited(edited, descend(task, start, points, "reconstruction"), nfe)


class _Exact(EditingMethod):
    """Editing by a solver that inverts exactly."""

    @abstractmethod
    def solver(self) -> Sampler:
        """The solver of both ways."""

    def run(self, task: EditingTask) -> Edited:
        solver, given = self.solver(), {"grid": task.grid, "noise_source": task.noise_source}
        way = ascend(solver, task.denoiser, task.x, task.steps, labels=task.source, **given)
        start = _last(task, way, "inversion")

        def back(denoiser: Denoiser, labels: Tensor, branch: Branch) -> Step:
            steps = solver.iterate(
                denoiser,
                start.x_s,
                task.steps,
                labels=labels,
                initial_state=start.x_s,
                state=start.state,
                end="state",
                **given,
            )
            return _last(task, steps, branch)

        edited = back(task.guided, task.target, "edit")
        again = back(task.denoiser, task.source, "reconstruction")
        dtype = task.x.dtype
        return Edited(edited.x_s.to(dtype), again.x_s.to(dtype), start.nfe + edited.nfe)


def _last(task: EditingTask, steps: Iterator[Step], branch: Branch) -> Step:
    """The last of a branch's steps; all of them are reported."""
    step = None
    for step in steps:
        task.report(branch, step.index, step.total, step.x0)
    assert step is not None, "a run has at least one step"
    return step


@EDITING_METHODS.register("edict")
@dataclass(frozen=True)
class EDICTEdit(_Exact):
    """EDICT's exact inversion under the source class, then EDICT under the target class. Wallace et al. 2023.

    Source: arXiv:2211.12446.

    Args:
        mixing: As of the sampler 'edict', in (0, 1].
    """

    mixing: float = 1.0

    def __post_init__(self) -> None:
        EDICT(self.mixing)

    def solver(self) -> Sampler:
        return EDICT(self.mixing)


@EDITING_METHODS.register("bdia")
@dataclass(frozen=True)
class BDIAEdit(_Exact):
    """BDIA's exact inversion under the source class, then BDIA under the target class. Zhang et al. 2023.

    Source: arXiv:2307.10829.

    Args:
        gamma: As of the sampler 'bdia-ddim', in (0, 1].
    """

    gamma: float = 1.0

    def __post_init__(self) -> None:
        BDIADDIM(self.gamma)

    def solver(self) -> Sampler:
        return BDIADDIM(self.gamma)


@EDITING_METHODS.register("direct")
@dataclass(frozen=True)
class DirectInversion(EditingMethod):
    """Direct inversion: every step of the source branch ends at a state of the inversion. Ju et al. 2024.

    The source branch so reconstructs exactly, whatever the guidance. In the paper the target branch takes the
    source's attention maps; a network without shared attention has nothing but the offset itself to share, and
    `to_target` is how much of it the target branch gets. At 0 the edit is that of 'ddim'.

    Source: arXiv:2310.01506, Algorithm 1.

    Args:
        to_target: Share of each step's offset that is added to the target branch too, in [0, 1].

    Raises:
        ValueError: to_target outside [0, 1].
    """

    branches: ClassVar[tuple[Branch, ...]] = ("inversion", "edit")

    to_target: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.to_target <= 1:
            raise ValueError(f"to_target is a share, in [0, 1], got {self.to_target}")

    def run(self, task: EditingTask) -> Edited:
        points = task.points()
        states = pivots(task, points)
        source, target = task.condition(task.source), task.condition(task.target)
        x = states[0]
        for i, (t, s) in enumerate(itertools.pairwise(points)):
            stepped = ddim_step(task.predict(task.guided, states[i], t, source.at_step(i)), s)
            offset = states[i + 1] - stepped
            d = task.predict(task.guided, x, t, target.at_step(i))
            x = ddim_step(d, s) + self.to_target * offset
            task.report("edit", i, len(points) - 1, d.x0)
        return Edited(x, states[-1], task.nfe)


@EDITING_METHODS.register("spdinv")
@dataclass(frozen=True)
class SPDInv(EditingMethod):
    """Inversion that solves for the state that each step of DDIM comes from, by gradient descent. Li et al. 2024.

    The inverse of DDIM's step from x_t to x_s is the fixed point x_t = f(x_t), with the prediction at x_t itself;
    the residual |x_t - f(x_t)|^2 is lowered by gradient descent, which needs no contraction. Then DDIM under the
    target class.

    Source: arXiv:2403.11105, Eq. 8 and Algorithm 1.

    Args:
        iterations: Of the descent in each step, at least 1, of an evaluation and a backward pass each.
        lr: Of the descent, above 0.

    Raises:
        ValueError: An option out of its range.
    """

    iterations: int = 5
    lr: float = 0.4

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.lr <= 0:
            raise ValueError(f"iterations must be at least 1 and lr above 0, got {self.iterations} and {self.lr}")

    def run(self, task: EditingTask) -> Edited:
        points = task.points()
        cond, x = task.condition(task.source), task.x
        for i in range(len(points) - 1, 0, -1):
            x, d = self._solve(task, x, points[i], points[i - 1], cond.at_step(i - 1))
            task.report("inversion", len(points) - 1 - i, len(points) - 1, d.x0)
        edited = descend(task, x, points, "edit")
        nfe = task.nfe
        return Edited(edited, descend(task, x, points, "reconstruction"), nfe)

    def _solve(
        self, task: EditingTask, x_s: Tensor, s: Scales, t: Scales, cond: Condition
    ) -> tuple[Tensor, Denoised]:
        """x_t at t > s, from which DDIM steps to x_s, and the prediction at s."""
        d = task.predict(task.denoiser, x_s, s, cond)
        x_t = ddim_step(d, t)
        network = "eps" if t.floats.alpha > 0 else "v"
        for _ in range(self.iterations):
            with torch.inference_mode(False), torch.enable_grad():
                x = x_t.detach().clone().requires_grad_()
                carry, push = split(task.predict(task.denoiser, x, differentiable(t), cond), t, s, network)
                residual = (x - (x_s - push) / carry).square().sum() / 2
                x_t = x_t - self.lr * torch.autograd.grad(residual, x)[0]
        return x_t, d
