"""dinit: any backbone × any noise process × any sampler × any guidance.

Names are imported on first use, so that `import dinit` is light. The class names of backbones are what a pipeline's
model_index.json refers to, ["dinit", "DiCo"]; diffusers finds there how to load one, by its base class ModelMixin.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dinit._listing import list_backbones as list_backbones
    from dinit._listing import list_datasets as list_datasets
    from dinit._listing import list_grids as list_grids
    from dinit._listing import list_guidances as list_guidances
    from dinit._listing import list_metrics as list_metrics
    from dinit._listing import list_parameterizations as list_parameterizations
    from dinit._listing import list_pipelines as list_pipelines
    from dinit._listing import list_processes as list_processes
    from dinit._listing import list_recipes as list_recipes
    from dinit._listing import list_samplers as list_samplers
    from dinit.models.adm import ADM as ADM
    from dinit.models.adm_classifier import ADMClassifier as ADMClassifier
    from dinit.models.adm_superres import ADMSuperRes as ADMSuperRes
    from dinit.models.base import ModelMixin as ModelMixin
    from dinit.models.ddpm import DDPM as DDPM
    from dinit.models.dic import DiC as DiC
    from dinit.models.dico import DiCo as DiCo
    from dinit.models.diffit import DiffiT as DiffiT
    from dinit.models.diffit_unet import DiffiTUNet as DiffiTUNet
    from dinit.models.diffussm import DiffuSSM as DiffuSSM
    from dinit.models.dimr import DiMR as DiMR
    from dinit.models.dis import DiS as DiS
    from dinit.models.dit import DiT as DiT
    from dinit.models.lamamba import LaMamba as LaMamba
    from dinit.models.lightningdit import LightningDiT as LightningDiT
    from dinit.models.lit import LiT as LiT
    from dinit.models.ncsnpp import NCSNpp as NCSNpp
    from dinit.models.sit import SiT as SiT
    from dinit.models.unet import UNet as UNet
    from dinit.pipelines.evaluate import evaluate as evaluate
    from dinit.pipelines.generate import Pipeline as Pipeline
    from dinit.pipelines.train import train as train
    from dinit.pipelines.weights.convert import convert as convert
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(
        __name__,
        __file__,
        elsewhere=(
            "dinit.samplers",
            "dinit.samplers.guidance",
            "dinit.diffusion",
            "dinit.models",
            "dinit.training",
            "dinit.evaluation",
            "dinit.data",
            "dinit.checkpoints",
            "dinit.likelihood",
            "dinit.inverse",
            "dinit.pipelines",
        ),
    )
