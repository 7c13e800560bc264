"""Backbones, autoencoder codecs and closed-form denoisers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dinit.compat import ensure_torchvision

if __name__ != "dinit.models":
    raise ImportError("import dinit.models, not models: a second name for one folder makes a second registry")

ensure_torchvision()  # before diffusers, which imports torchvision

if TYPE_CHECKING:
    from dinit.models.adm import ADM as ADM
    from dinit.models.adm_classifier import ADMClassifier as ADMClassifier
    from dinit.models.adm_superres import ADMSuperRes as ADMSuperRes
    from dinit.models.adm_superres import GivenLowRes as GivenLowRes
    from dinit.models.analytic import GaussianDenoiser as GaussianDenoiser
    from dinit.models.analytic import MixtureDenoiser as MixtureDenoiser
    from dinit.models.base import BACKBONES as BACKBONES
    from dinit.models.base import Backbone as Backbone
    from dinit.models.codec import AutoencoderKLCodec as AutoencoderKLCodec
    from dinit.models.codec import Codec as Codec
    from dinit.models.codec import IdentityCodec as IdentityCodec
    from dinit.models.ddpm import DDPM as DDPM
    from dinit.models.dic import DiC as DiC
    from dinit.models.dico import DiCo as DiCo
    from dinit.models.diffit import DiffiT as DiffiT
    from dinit.models.diffit_unet import DiffiTUNet as DiffiTUNet
    from dinit.models.diffussm import DiffuSSM as DiffuSSM
    from dinit.models.dimr import DiMR as DiMR
    from dinit.models.dis import DiS as DiS
    from dinit.models.dit import DiT as DiT
    from dinit.models.gaussian_mixture import GaussianMixture as GaussianMixture
    from dinit.models.gaussian_mixture import GaussianMixtureDenoiser as GaussianMixtureDenoiser
    from dinit.models.lamamba import LaMamba as LaMamba
    from dinit.models.lightningdit import LightningDiT as LightningDiT
    from dinit.models.lit import LiT as LiT
    from dinit.models.ncsnpp import NCSNpp as NCSNpp
    from dinit.models.sit import SiT as SiT
    from dinit.models.unet import UNet as UNet
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__)
