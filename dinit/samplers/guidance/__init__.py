"""Guidance: frozen dataclasses whose `wrap(denoiser)` is a guided denoiser. They nest."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinit.samplers.guidance.apg import APG as APG
    from dinit.samplers.guidance.autoguidance import Autoguidance as Autoguidance
    from dinit.samplers.guidance.base import GUIDANCES as GUIDANCES
    from dinit.samplers.guidance.base import Guidance as Guidance
    from dinit.samplers.guidance.base import Guided as Guided
    from dinit.samplers.guidance.base import apply_guidance as apply_guidance
    from dinit.samplers.guidance.cads import CADS as CADS
    from dinit.samplers.guidance.cfg import CFG as CFG
    from dinit.samplers.guidance.cfg_pp import CFGpp as CFGpp
    from dinit.samplers.guidance.cfg_zero import CFGZeroStar as CFGZeroStar
    from dinit.samplers.guidance.classifier import Classifier as Classifier
    from dinit.samplers.guidance.clip import ClipX0 as ClipX0
    from dinit.samplers.guidance.compose import Compose as Compose
    from dinit.samplers.guidance.discriminator import Discriminator as Discriminator
    from dinit.samplers.guidance.negative import Negative as Negative
    from dinit.samplers.guidance.noise_damped import NoiseDamped as NoiseDamped
    from dinit.samplers.guidance.schedule import SCHEDULES as SCHEDULES
    from dinit.samplers.guidance.schedule import Constant as Constant
    from dinit.samplers.guidance.schedule import Cosine as Cosine
    from dinit.samplers.guidance.schedule import Linear as Linear
    from dinit.samplers.guidance.schedule import LogSNR as LogSNR
    from dinit.samplers.guidance.schedule import PowerCosine as PowerCosine
    from dinit.samplers.guidance.schedule import ScaleSchedule as ScaleSchedule
    from dinit.samplers.guidance.threshold import DynamicThreshold as DynamicThreshold
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__)
