"""Gaussian paths: processes, parameterizations, denoisers, independent of networks and solvers.

Notation. t in [0, 1]: 0 is data, 1 is noise. x_t = alpha_t * x0 + sigma_t * eps with eps ~ N(0, I).
snr = (alpha_t / sigma_t) ** 2, log_snr its logarithm (DPM-Solver's lambda is half of it); the noise level
sigma_t / alpha_t is EDM's and k-diffusion's sigma. velocity = d_alpha_t * x0 + d_sigma_t * eps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dinit.diffusion.condition import Condition as Condition
    from dinit.diffusion.condition import RunContext as RunContext
    from dinit.diffusion.condition import SupportsNormal as SupportsNormal
    from dinit.diffusion.continuous import EDM as EDM
    from dinit.diffusion.continuous import GVP as GVP
    from dinit.diffusion.continuous import VE as VE
    from dinit.diffusion.continuous import VP as VP
    from dinit.diffusion.continuous import LinearFlow as LinearFlow
    from dinit.diffusion.continuous import SubVP as SubVP
    from dinit.diffusion.denoised import Denoised as Denoised
    from dinit.diffusion.denoiser import BackboneDenoiser as BackboneDenoiser
    from dinit.diffusion.denoiser import Denoiser as Denoiser
    from dinit.diffusion.denoiser import WrappedDenoiser as WrappedDenoiser
    from dinit.diffusion.discrete import BetaChain as BetaChain
    from dinit.diffusion.discrete import VEDiscrete as VEDiscrete
    from dinit.diffusion.discrete import VPBetas as VPBetas
    from dinit.diffusion.discrete import VPDiscrete as VPDiscrete
    from dinit.diffusion.parameterization import PARAMETERIZATIONS as PARAMETERIZATIONS
    from dinit.diffusion.parameterization import X0 as X0
    from dinit.diffusion.parameterization import Difference as Difference
    from dinit.diffusion.parameterization import EDMPreconditioning as EDMPreconditioning
    from dinit.diffusion.parameterization import Epsilon as Epsilon
    from dinit.diffusion.parameterization import Parameterization as Parameterization
    from dinit.diffusion.parameterization import ReversedEpsilon as ReversedEpsilon
    from dinit.diffusion.parameterization import ReversedScore as ReversedScore
    from dinit.diffusion.parameterization import ReversedVelocity as ReversedVelocity
    from dinit.diffusion.parameterization import Score as Score
    from dinit.diffusion.parameterization import V as V
    from dinit.diffusion.parameterization import Velocity as Velocity
    from dinit.diffusion.process import PROCESSES as PROCESSES
    from dinit.diffusion.process import Process as Process
    from dinit.diffusion.process import Scales as Scales
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__)
