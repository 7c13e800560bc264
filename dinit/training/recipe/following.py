"""Settings that follow another one: what an override makes impossible is made to fit, with a line about it."""

from __future__ import annotations

import math

from dinit.training.recipe.model import Recipe
from dinit.training.recipe.yaml import Source


def follow_overrides(recipe: Recipe, source: Source) -> tuple[Recipe, list[str]]:
    """Fit a warm-up to fewer steps, and the accumulated parts to another batch, where an override changed these.

    A contradiction within the text, or within the overrides, is left to the checks.

    Args:
        recipe: As it was read.
        source: Where its keys come from.

    Returns:
        The recipe, and a line for each setting that was changed.
    """

    def given(*path: str) -> bool:
        return source.place(path).startswith("override ")

    loop, schedule, lines = recipe.training, recipe.schedule, []
    wants_steps = given("training", "steps") and not given("schedule", "warmup_steps")
    if wants_steps and schedule.warmup_steps >= loop.steps and not loop.extended:
        shorter = loop.steps // 10
        lines.append(
            f"schedule.warmup_steps is {shorter} in place of {schedule.warmup_steps}, a tenth of "
            f"training.steps={loop.steps}"
        )
        schedule = schedule.model_copy(update={"warmup_steps": shorter})
    wants_batch = given("training", "batch_size") and not given("training", "gradient_accumulation")
    if wants_batch and loop.batch_size % loop.gradient_accumulation:
        parts = math.gcd(loop.batch_size, loop.gradient_accumulation)
        lines.append(
            f"training.gradient_accumulation is {parts} in place of {loop.gradient_accumulation}, which does not "
            f"divide training.batch_size={loop.batch_size}"
        )
        loop = loop.model_copy(update={"gradient_accumulation": parts})
    return recipe.model_copy(update={"training": loop, "schedule": schedule}), lines
