"""The maths of Gaussian paths: processes, parameterizations, denoisers. Knows no network and no solver.

Notation. t in [0, 1]: 0 is data, 1 is noise. x_t = alpha_t * x0 + sigma_t * eps with eps ~ N(0, I).
snr = (alpha_t / sigma_t) ** 2, log_snr its logarithm (DPM-Solver's lambda is half of it); the noise level
sigma_t / alpha_t is EDM's and k-diffusion's sigma. velocity = d_alpha_t * x0 + d_sigma_t * eps.
"""

from dinit.diffusion.condition import Condition
from dinit.diffusion.denoiser import BackboneDenoiser, Denoised, Denoiser
from dinit.diffusion.parameterization import PARAMETERIZATIONS, Parameterization
from dinit.diffusion.process import PROCESSES, Process, Scales

__all__ = [
    "PARAMETERIZATIONS",
    "PROCESSES",
    "BackboneDenoiser",
    "Condition",
    "Denoised",
    "Denoiser",
    "Parameterization",
    "Process",
    "Scales",
]
