"""Training: recipes, losses, time sampling, EMA, checkpoints. The loop and its step are in step.py."""

from dinit.training.averaging.ema import EMA
from dinit.training.losses.terms import LOSS_TERMS, LossTerm
from dinit.training.losses.times import TIME_SAMPLERS, TimeSampler
from dinit.training.losses.weighting import WEIGHTINGS, Weighting
from dinit.training.objective import Objective
from dinit.training.recipe.file import RecipeError, load_recipe, parse_recipe
from dinit.training.recipe.model import Recipe

__all__ = [
    "EMA",
    "LOSS_TERMS",
    "TIME_SAMPLERS",
    "WEIGHTINGS",
    "LossTerm",
    "Objective",
    "Recipe",
    "RecipeError",
    "TimeSampler",
    "Weighting",
    "load_recipe",
    "parse_recipe",
]
