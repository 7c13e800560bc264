"""Training: recipes, losses, time sampling, EMA, checkpoints. The loop itself is dinit/pipelines/train.py."""

from dinit.training.ema import EMA
from dinit.training.objective import Objective
from dinit.training.recipe import Recipe
from dinit.training.recipe_file import RecipeError, load_recipe, parse_recipe
from dinit.training.terms import LOSS_TERMS, LossTerm
from dinit.training.times import TIME_SAMPLERS, TimeSampler
from dinit.training.weighting import WEIGHTINGS, Weighting

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
