"""Summary of a run: how far it is, how it went, what it trains, and what to do next. Imports nothing heavy."""

from __future__ import annotations

import json
import math
import shlex
from pathlib import Path
from typing import Any

import yaml

from dinit.checkpoints.runs import INDEX, RECIPE, newest_step
from dinit.files import is_held
from dinit.training.recipe.model import LoopSection, Named, Recipe, flatten
from dinit.training.run.log import read_losses

_AVERAGED = 100  # losses, as the display and the result of a run do
_SHOWN = 24  # settings


def run_summary(run: Path) -> dict[str, str]:
    """What is known of a run, from its files alone.

    Args:
        run: Its folder.

    Returns:
        Rows of a table: what, and in words how much.

    Raises:
        ValueError: The recipe of the run cannot be read.
    """
    recipe = _recipe(run)
    total = int(recipe.get("training", {}).get("steps", 0))
    losses = read_losses(run / "losses.jsonl") if (run / "losses.jsonl").is_file() else []
    done, saved, facts = len(losses), newest_step(run), _json(run / "pipeline" / "training.json")
    made = int(facts.get("steps", 0)) if (run / "pipeline" / INDEX).is_file() else 0
    seconds = _seconds(saved.folder) if saved is not None else facts.get("seconds")
    recent = [loss for _, loss in losses if math.isfinite(loss)][-_AVERAGED:]
    rows = {
        "state": _state(run, total, done, made, saved.step if saved else 0),
        "step": f"{max(done, made):,} of {total:,}",
    }
    if seconds is not None:
        at = saved.step if saved is not None else made
        left = (total - at) * seconds / at if at and at < total else 0
        rows["time"] = _duration(seconds) + (f", about {_duration(left)} left" if left else "")
    if recent:
        rows["loss"] = f"{sum(recent) / len(recent):.4f}, mean of the last {len(recent)} steps"
    rows |= _data(run, recipe)
    if saved is not None:
        rows["newest checkpoint"] = str(saved.folder)
    if made:
        rows["pipeline"] = f"{run / 'pipeline'}, of step {made:,}"
    if extended := recipe.get("training", {}).get("extended"):
        rows["steps changed"] = ", ".join(f"from {total:,} after step {step:,}" for step, total in extended)
    rows["settings"] = _settings(recipe)
    rows["next"] = "\n".join(_next(run, total, made, saved is not None))
    return rows


def _state(run: Path, total: int, done: int, made: int, saved: int) -> str:
    if made and made >= total:
        return "finished"
    if (run / "diverged.json").is_file():
        line = _json(run / "diverged.json")
        return f"diverged at step {line.get('step')}: {line.get('reason')}"
    if is_held(run):
        return "in training" if done else "just started: no step is reported yet"
    if not saved:
        return "stopped before its first checkpoint, so it would start again" if done else "not begun"
    return f"stopped; goes on after step {saved:,}"


def _next(run: Path, total: int, made: int, saved: bool) -> list[str]:
    name = shlex.quote(str(run))
    use = [f"dinit generate {name}", f"dinit evaluate {name}"] if made or saved else []
    if made and made >= total:
        return [*use, f"dinit app {name}", f"dinit train {name} --extend {2 * total}"]
    return [f"dinit train {name}", *use]


def _data(run: Path, recipe: dict[str, Any]) -> dict[str, str]:
    spec = recipe.get("data") or {}
    record = _json(run / "data.json")
    rows = {"data": str(spec.get("path") or spec.get("name"))}
    classes = record.get("classes")
    if classes is None and (run / "classes.json").is_file():
        classes = json.loads((run / "classes.json").read_text(encoding="utf-8"))
    if record:
        side = record["image_size"]
        rows["pictures"] = f"{record['pictures']:,}, {record['channels']}×{side}×{side}"
    if classes:
        shown = ", ".join(map(str, classes[:12]))
        rows["classes"] = f"{len(classes)}: {shown}" + (", …" if len(classes) > 12 else "")
    return rows


def _settings(recipe: dict[str, Any]) -> str:
    """The settings that are not the defaults, a line each."""
    usual = Recipe(data=Named(name=""), backbone=Named(name=""), training=LoopSection(steps=1)).to_dict()
    before, shown = flatten(usual), ("name", "data.", "training.steps", "training.extended")
    lines = [
        f"{key}: {value}"
        for key, value in flatten(recipe).items()
        if before.get(key) != value and not key.startswith(shown)
    ]
    rest = [f"and {len(lines) - _SHOWN} more, see {RECIPE}"] if len(lines) > _SHOWN else []
    return "\n".join([*lines[:_SHOWN], *rest])


def _recipe(run: Path) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load((run / RECIPE).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{run / RECIPE} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(recipe, dict) or not isinstance(recipe.get("training"), dict):
        raise ValueError(f"{run / RECIPE} is not a recipe with its training, as a run has it")
    return recipe


def _seconds(checkpoint: Path) -> float | None:
    return _json(checkpoint / "state.json").get("extra", {}).get("seconds")


def _json(path: Path) -> dict[str, Any]:
    """The object in a file of the run; {} where there is none, or a damaged one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
