"""Training: recipes, losses, time sampling, EMA, checkpoints. The loop and its step are in step.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinit.training.averaging.ema import EMA as EMA
    from dinit.training.averaging.power_ema import PowerEMA as PowerEMA
    from dinit.training.discriminator import DiscriminatorRecipe as DiscriminatorRecipe
    from dinit.training.discriminator import NoisyDiscriminator as NoisyDiscriminator
    from dinit.training.discriminator import accuracy_by_time as accuracy_by_time
    from dinit.training.losses.terms import LOSS_TERMS as LOSS_TERMS
    from dinit.training.losses.terms import Contrastive as Contrastive
    from dinit.training.losses.terms import Direction as Direction
    from dinit.training.losses.terms import LossTerm as LossTerm
    from dinit.training.losses.times import TIME_SAMPLERS as TIME_SAMPLERS
    from dinit.training.losses.times import LogitNormal as LogitNormal
    from dinit.training.losses.times import LogNormalNoise as LogNormalNoise
    from dinit.training.losses.times import SNRShift as SNRShift
    from dinit.training.losses.times import Stratified as Stratified
    from dinit.training.losses.times import TimeSampler as TimeSampler
    from dinit.training.losses.times import UniformTimes as UniformTimes
    from dinit.training.losses.weighting import WEIGHTINGS as WEIGHTINGS
    from dinit.training.losses.weighting import LikelihoodWeighting as LikelihoodWeighting
    from dinit.training.losses.weighting import MinSNRWeighting as MinSNRWeighting
    from dinit.training.losses.weighting import P2Weighting as P2Weighting
    from dinit.training.losses.weighting import PosteriorMeanWeighting as PosteriorMeanWeighting
    from dinit.training.losses.weighting import SigmoidWeighting as SigmoidWeighting
    from dinit.training.losses.weighting import SNRWeighting as SNRWeighting
    from dinit.training.losses.weighting import UniformWeighting as UniformWeighting
    from dinit.training.losses.weighting import Weighting as Weighting
    from dinit.training.muon import Muon as Muon
    from dinit.training.objective import Objective as Objective
    from dinit.training.optimizer import Lion as Lion
    from dinit.training.recipe.file import RecipeError as RecipeError
    from dinit.training.recipe.file import load_recipe as load_recipe
    from dinit.training.recipe.file import parse_recipe as parse_recipe
    from dinit.training.recipe.model import Recipe as Recipe
    from dinit.training.regularizers.encoders import ENCODERS as ENCODERS
    from dinit.training.regularizers.encoders import Encoder as Encoder
    from dinit.training.run.divergence import TrainingDiverged as TrainingDiverged
    from dinit.training.run.log import read_losses as read_losses
    from dinit.training.run.stopping import TrainingStopped as TrainingStopped
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__)
