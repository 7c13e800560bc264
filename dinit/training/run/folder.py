"""Run folders: the recipe of a run, whether another recipe may go on with it, and for how many steps."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from dinit.contents import unfit
from dinit.data import ImageData, ImageFolder
from dinit.data.class_names import normalized
from dinit.data.folder import class_folders
from dinit.files import LOCK, is_leftover, write_atomically
from dinit.training.optimizer import learning_rate
from dinit.training.recipe.model import Recipe, flatten
from dinit.training.recipe.names import use_present_names
from dinit.training.run.checkpoint import list_checkpoints, newest_checkpoint
from dinit.training.run.health import read_lines
from dinit.training.run.log import read_losses

_FREE_OF_LOOP = (
    "device",
    "workers",
    "log_every",
    "sample_every",
    "checkpoint_every",
    "keep",
    "max_skipped",
    "sharding",
)
# Settings that change neither weights nor losses, so a run may be resumed with others.
_FREE = (
    "name",
    "sampling",
    "evaluation",
    "tracker",
    *(f"training.{key}" for key in _FREE_OF_LOOP),
)

CLASSES = "classes.json"  # names of the run's classes, by number
DIVERGED = "diverged.json"  # the step at which the last session diverged, and why
DATA = "data.json"  # what the run's data was, by `dinit.training.run.data`

_ELSEWHERE = "; nothing was written. Give another folder"


class RunFolderError(ValueError):
    """A folder that this recipe must not write into."""


@dataclass(frozen=True)
class RunPlan:
    """What a call of `train` does in a folder.

    Attributes:
        recipe: What is trained: the given recipe, with the run's own number of steps.
        lines: What the user should know about it.
    """

    recipe: Recipe
    lines: tuple[str, ...] = ()


def check_run_folder(out: Path, recipe: Recipe, resume: bool, extend: int | None = None) -> RunPlan:
    """Whether `recipe` may be trained in `out`, which is absent, empty, or holds a run of this recipe.

    Args:
        out: The folder.
        recipe: What is to be trained.
        resume: Whether a run that is there may go on.
        extend: The new total of optimiser steps of the run that is there.

    Returns:
        The recipe with which the run goes on.

    Raises:
        RunFolderError: `out` holds something else, or the run cannot have that many steps.
        CheckpointError: None of its checkpoints can be read, where the number of steps changes.
    """
    if out.exists() and not out.is_dir():
        raise RunFolderError(f"{out} is a file; give a folder for the run")
    empty = not out.exists() or all(is_leftover(path) or path.name == LOCK for path in out.iterdir())
    if empty and extend is not None:
        raise RunFolderError(f"{out} holds no run to extend; training.steps={extend} starts one of so many steps")
    if empty:
        return RunPlan(recipe)
    if not (out / "recipe.yaml").exists():
        raise RunFolderError(f"{out} is not empty and holds no run of dinit{_ELSEWHERE}")
    if not resume:
        raise RunFolderError(f"{out} holds a run already, and resuming was turned off{_ELSEWHERE}")
    if not os.access(out, os.W_OK):
        raise RunFolderError(f"{out} is read-only; make it writable, or copy the run to another folder")
    begun = read_recipe(out)
    _check_same(out, begun, recipe)
    _check_checkpoints(out, begun)
    steps = _Steps(out, begun, recipe)
    return steps.plan() if extend is None else steps.extended(extend)


def _check_same(out: Path, begun: Recipe, recipe: Recipe) -> None:
    """RunFolderError for another value of a key that decides what a run trains, the number of steps aside."""
    changed = [(key, old, new) for key, old, new in differences(begun, recipe) if key not in _STEPS]
    if recipe.training.steps <= begun.schedule.warmup_steps < begun.training.steps:
        # A recipe of fewer steps has a shorter warm-up; the run keeps its own.
        changed = [one for one in changed if one[0] != "schedule.warmup_steps"]
    if [key for key, *_ in changed] == ["data.path"] and (out / DATA).is_file():
        return  # compared once the data is open
    if changed:
        shown = "\n".join(f"  {key}: {old!r} there, {new!r} now" for key, old, new in changed)
        raise RunFolderError(
            f"{out} holds a run of another recipe{_ELSEWHERE}, or the same recipe:\n{shown}\n"
            f"Of a begun run these may change: {', '.join(_FREE)}; data.path, to the same pictures; and "
            f"training.steps, to more by --extend. `dinit train {out}` goes on with the run's own recipe"
        )


_STEPS = ("training.steps", "training.extended")


def _check_checkpoints(out: Path, begun: Recipe) -> None:
    """RunFolderError where the run has trained past its first checkpoint and has none any more."""
    if list_checkpoints(out / "checkpoints"):
        return
    log = out / "losses.jsonl"
    done = max((step for step, _ in read_losses(log)), default=0) if log.is_file() else 0
    if pipeline_steps(out) is None and done > begun.training.checkpoint_every:
        raise RunFolderError(
            f"{out} has trained {done} steps and its checkpoints are gone, so it would start again{_ELSEWHERE}, or "
            "put its folder checkpoints/ back"
        )


class _Steps:
    """The number of steps of a run that goes on.

    `begun`: its own recipe. `recipe`: the one given now.
    """

    def __init__(self, out: Path, begun: Recipe, recipe: Recipe) -> None:
        self.out, self.begun, self.recipe = out, begun, recipe
        self.total, self.history = begun.training.steps, list(begun.training.extended)

    def plan(self) -> RunPlan:
        """Without an extension: as many as it has, or fewer where the recipe now has fewer."""
        wanted, total = self.recipe.training.steps, self.total
        before = [steps for _, steps in self.history]
        if wanted == total:
            return self._with(total, self.history)
        if wanted in before:
            return self._with(total, self.history, f"the run's total is {total:,} steps since it was changed")
        if wanted > total:
            raise RunFolderError(
                f"{self.out} holds a run of {total} steps, and the recipe now has training.steps = {wanted}; "
                f"nothing was written. To go on to that many, add --extend {wanted} (in Python extend={wanted})"
            )
        made = pipeline_steps(self.out)
        if made is not None and made >= total:
            return self._with(
                total, self.history, f"all {made:,} steps are done already, and the pipeline has them"
            )
        done = self._done()
        if wanted > done:
            return self._changed(done, wanted)
        line = f"{done:,} steps are done, not fewer than training.steps = {wanted:,}: the run ends with these"
        return self._with(done, self._history(done), line)

    def extended(self, total: int) -> RunPlan:
        """With a new total. RunFolderError where it is none, or the run cannot go on."""
        made, had = pipeline_steps(self.out), self.total
        if not list_checkpoints(self.out / "checkpoints") and made is not None:
            raise RunFolderError(
                f"{self.out} has no checkpoint left, so it cannot go on; start another run from its pipeline, with "
                f"--init-from {self.out / 'pipeline'}"
            )
        done = self._done()
        if total == had:
            return self._with(total, self.history)
        if total <= done:
            raise RunFolderError(
                f"--extend {total}: {done} steps of the run in {self.out} are done already; --extend takes the new "
                f"total, so give more than {done}"
            )
        if total < had:
            raise RunFolderError(
                f"--extend {total}: the run in {self.out} has a total of {had} steps already, of which {done} are "
                f"done; to end it earlier, give training.steps={total} in place of --extend"
            )
        bad = diverged_step(self.out)
        if bad is not None and bad > done:
            raise RunFolderError(
                f"the run in {self.out} diverged at step {bad}, after its last checkpoint at step {done}, and "
                "would do so again; more steps do not help. Start another run with a lower optimizer.lr, a longer "
                "schedule.warmup_steps or precision fp32"
            )
        return self._changed(done, total)

    def _done(self) -> int:
        checkpoint = newest_checkpoint(self.out / "checkpoints")
        return 0 if checkpoint is None else checkpoint.step

    def _history(self, done: int) -> list[tuple[int, int]]:
        """The totals until now, of the steps that were trained under each."""
        last = self.history[-1][0] if self.history else 0
        return [*self.history, (done, self.total)] if done > last else self.history

    def _changed(self, done: int, total: int) -> RunPlan:
        plan = self._with(total, self._history(done))
        line = f"goes on after step {done:,}, to {total:,} steps in place of {self.total:,}"
        recipe = plan.recipe
        if recipe.schedule.kind != "constant" and done > 0:
            old, new = (
                learning_rate(step, total, recipe.optimizer.lr, recipe.schedule, recipe.training.extended)
                for step in (done, done + 1)
            )
            line += (
                f"; the learning rate is now that of a run of {total:,} steps: {old:.3g} at step {done:,}, "
                f"{new:.3g} at the next"
            )
        return RunPlan(recipe, (line,))

    def _with(self, total: int, history: list[tuple[int, int]], *lines: str) -> RunPlan:
        loop = self.recipe.training.model_copy(update={"steps": total, "extended": history})
        recipe = self.recipe.model_copy(update={"training": loop, "schedule": self.begun.schedule})
        return RunPlan(recipe, lines)


def diverged_step(out: Path) -> int | None:
    """The step at which the last session of a run ended by divergence; None where it did not."""
    return next((line["step"] for line in read_lines(out / DIVERGED)), None)


def pipeline_steps(out: Path) -> int | None:
    """Optimiser steps of a run's pipeline, None where it has none. RunFolderError for a damaged record."""
    record = out / "pipeline" / "training.json"
    if not record.is_file():
        return None
    try:
        return int(json.loads(record.read_text(encoding="utf-8"))["steps"])
    except (ValueError, TypeError, KeyError) as error:
        raise RunFolderError(f"{record} is damaged; remove {out / 'pipeline'}, which is then made again") from error


def check_classes(out: Path, data: ImageData) -> None:
    """Whether the data still has the classes that the run in `out` was begun with, by number.

    Args:
        out: The run's folder. Runs of 0.1.0 have no record of their classes, which then were sorted as text.
        data: The data set, as it is now.

    Raises:
        RunFolderError: A class has another number, or another name.
    """
    if (out / CLASSES).is_file():
        try:
            before = list(json.loads((out / CLASSES).read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise RunFolderError(f"{out / CLASSES} is damaged: {error}") from error
    elif isinstance(data, ImageFolder):
        before = [normalized(folder.name) for folder in sorted(class_folders(data.root))]
    else:
        return
    now = list(data.class_names)
    if before == now:
        return
    place = next(k for k, (old, new) in enumerate(zip_longest(before, now)) if old != new)
    old, new = (names[place] if place < len(names) else None for names in (before, now))
    raise RunFolderError(
        f"{out} holds a run with other classes than the data set has now: class {place} is {old!r} there, {new!r} "
        "now; nothing was written. Give another folder, or the same data"
    )


def write_recipe(out: Path, recipe: Recipe) -> None:
    """Writes recipe.yaml, every default spelt out."""
    write_atomically(out / "recipe.yaml", yaml.safe_dump(recipe.to_dict(), sort_keys=False, allow_unicode=True))


def check_run(run: Path) -> None:
    """RunFolderError where there is no run, with what there is in its place."""
    if not run.exists():
        raise RunFolderError(f"there is no run {run}; give a folder that `dinit train` wrote, such as runs/NAME")
    if not (run / "recipe.yaml").is_file():
        raise RunFolderError(unfit(run, "a run, the folder that `dinit train` wrote, with recipe.yaml in it"))


def read_recipe(out: Path) -> Recipe:
    """The recipe with which a run was started. RunFolderError where it cannot be read."""
    try:
        text = (out / "recipe.yaml").read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        if isinstance(data, dict):
            use_present_names(data, warn=False)
        return Recipe.model_validate(data)
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        reason = "\n".join(str(error).splitlines()[:12])
        raise RunFolderError(f"{out / 'recipe.yaml'} is not a recipe of this version: {reason}") from error


def differences(old: Recipe, new: Recipe) -> list[tuple[str, Any, Any]]:
    """(dotted key, old, new) of every setting that makes two recipes train differently."""
    before, after = flatten(old.to_dict()), flatten(new.to_dict())
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    return [
        (key, before.get(key), after.get(key))
        for key in keys
        if not any(key == free or key.startswith(f"{free}.") for free in _FREE)
    ]


def scalars(values: dict[str, Any]) -> dict[str, Any]:
    """Nested mappings as trackers take them: flat, of numbers and words."""
    plain = (int, float, str, bool)
    return {key: value if isinstance(value, plain) else str(value) for key, value in flatten(values).items()}
