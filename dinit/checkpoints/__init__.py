"""Published checkpoints, and diffusers' models and schedulers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinit.checkpoints.from_diffusers import denoiser_from_diffusers as denoiser_from_diffusers
    from dinit.checkpoints.imagenet import imagenet_names as imagenet_names
    from dinit.checkpoints.interop.scheduler_sampler import SchedulerGrid as SchedulerGrid
    from dinit.checkpoints.interop.scheduler_sampler import SchedulerSampler as SchedulerSampler
    from dinit.checkpoints.interop.scheduler_sampler import sampler_from_diffusers as sampler_from_diffusers
    from dinit.checkpoints.keymap import KeyMap as KeyMap
    from dinit.checkpoints.layouts.base import LAYOUTS as LAYOUTS
    from dinit.checkpoints.layouts.base import Layout as Layout
    from dinit.checkpoints.locating import locate as locate
    from dinit.checkpoints.locating import shipped as shipped
    from dinit.checkpoints.reading import Checkpoint as Checkpoint
    from dinit.checkpoints.reading import read_checkpoint as read_checkpoint
    from dinit.checkpoints.recognition import Recognised as Recognised
    from dinit.checkpoints.recognition import recognise_state as recognise_state
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__)
