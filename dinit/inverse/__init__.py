"""Images that are given: measurements of them, the posterior given one, and editing between classes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinit.inverse.editing.base import EDITING_METHODS as EDITING_METHODS
    from dinit.inverse.editing.base import Edited as Edited
    from dinit.inverse.editing.base import EditingMethod as EditingMethod
    from dinit.inverse.editing.base import EditingStep as EditingStep
    from dinit.inverse.editing.base import EditingTask as EditingTask
    from dinit.inverse.editing.embeddings import ConditionEmbedding as ConditionEmbedding
    from dinit.inverse.editing.embeddings import NullEmbedding as NullEmbedding
    from dinit.inverse.editing.inversions import BDIAEdit as BDIAEdit
    from dinit.inverse.editing.inversions import DDIMEdit as DDIMEdit
    from dinit.inverse.editing.inversions import DirectInversion as DirectInversion
    from dinit.inverse.editing.inversions import EDICTEdit as EDICTEdit
    from dinit.inverse.editing.inversions import SPDInv as SPDInv
    from dinit.inverse.editing.without_inversion import InfEdit as InfEdit
    from dinit.inverse.editing.without_inversion import SDEdit as SDEdit
    from dinit.inverse.guidance.base import PosteriorGuidance as PosteriorGuidance
    from dinit.inverse.guidance.ddnm import DDNM as DDNM
    from dinit.inverse.guidance.ddnm import DDNMPlus as DDNMPlus
    from dinit.inverse.guidance.diffpir import DiffPIR as DiffPIR
    from dinit.inverse.guidance.dps import DPS as DPS
    from dinit.inverse.guidance.mmps import MMPS as MMPS
    from dinit.inverse.guidance.pigdm import PiGDM as PiGDM
    from dinit.inverse.guidance.stsl import STSL as STSL
    from dinit.inverse.guidance.tmpd import TMPD as TMPD
    from dinit.inverse.measurement import Measurement as Measurement
    from dinit.inverse.noise import estimate_noise as estimate_noise
    from dinit.inverse.operators.base import OPERATORS as OPERATORS
    from dinit.inverse.operators.base import LinearOperator as LinearOperator
    from dinit.inverse.operators.base import Operator as Operator
    from dinit.inverse.operators.blur import Blur as Blur
    from dinit.inverse.operators.codec import Codec as Codec
    from dinit.inverse.operators.color import ColorRotation as ColorRotation
    from dinit.inverse.operators.color import Grey as Grey
    from dinit.inverse.operators.combined import Compose as Compose
    from dinit.inverse.operators.combined import Stack as Stack
    from dinit.inverse.operators.downscale import Downscale as Downscale
    from dinit.inverse.operators.identity import Identity as Identity
    from dinit.inverse.operators.jpeg import Jpeg as Jpeg
    from dinit.inverse.operators.mask import Mask as Mask
    from dinit.inverse.operators.matrix import Matrix as Matrix
    from dinit.inverse.operators.projection import Hadamard as Hadamard
    from dinit.inverse.operators.projection import RandomProjection as RandomProjection
    from dinit.inverse.operators.saturate import Saturate as Saturate
    from dinit.inverse.operators.svd import SVD as SVD
    from dinit.inverse.operators.svd import DenseSVD as DenseSVD
    from dinit.inverse.samplers.base import POSTERIOR_SAMPLERS as POSTERIOR_SAMPLERS
    from dinit.inverse.samplers.base import PosteriorSampler as PosteriorSampler
    from dinit.inverse.samplers.daps import DAPS as DAPS
    from dinit.inverse.samplers.ddrm import DDRM as DDRM
    from dinit.inverse.samplers.mcmc import MCMC as MCMC
    from dinit.inverse.samplers.red_diff import REDDiff as REDDiff
    from dinit.inverse.samplers.replacement import RePaint as RePaint
    from dinit.inverse.samplers.replacement import Replace as Replace
    from dinit.inverse.samplers.tds import TDS as TDS
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__)
