"""Samplers, time grids and noise sources. Guidance is in dinit.samplers.guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING

if __name__ != "dinit.samplers":
    raise ImportError("import dinit.samplers, not samplers: a second name for one folder makes a second registry")

if TYPE_CHECKING:
    from dinit.samplers.base import SAMPLERS as SAMPLERS
    from dinit.samplers.base import Claims as Claims
    from dinit.samplers.base import Sampler as Sampler
    from dinit.samplers.comparison import Comparison as Comparison
    from dinit.samplers.comparison import compare as compare
    from dinit.samplers.grids.base import GRIDS as GRIDS
    from dinit.samplers.grids.base import TimeGrid as TimeGrid
    from dinit.samplers.grids.karras import Karras as Karras
    from dinit.samplers.grids.log_snr import Exponential as Exponential
    from dinit.samplers.grids.log_snr import LogSNR as LogSNR
    from dinit.samplers.grids.log_snr import Polyexponential as Polyexponential
    from dinit.samplers.grids.published import AlignYourSteps as AlignYourSteps
    from dinit.samplers.grids.published import VPInSigma as VPInSigma
    from dinit.samplers.grids.respacing import Respaced as Respaced
    from dinit.samplers.grids.shifted import Shifted as Shifted
    from dinit.samplers.grids.times import Searched as Searched
    from dinit.samplers.grids.times import Times as Times
    from dinit.samplers.grids.timesteps import Timesteps as Timesteps
    from dinit.samplers.grids.uniform import Quadratic as Quadratic
    from dinit.samplers.grids.uniform import Uniform as Uniform
    from dinit.samplers.inversion.bdia import BDIADDIM as BDIADDIM
    from dinit.samplers.inversion.bdia import BDIAEDM as BDIAEDM
    from dinit.samplers.inversion.edict import EDICT as EDICT
    from dinit.samplers.inversion.invert import DDIMInverse as DDIMInverse
    from dinit.samplers.inversion.invert import Inversion as Inversion
    from dinit.samplers.inversion.invert import Reversible as Reversible
    from dinit.samplers.inversion.invert import invert as invert
    from dinit.samplers.multistep.adams import AdamsBashforth as AdamsBashforth
    from dinit.samplers.multistep.adams import ExponentialAB as ExponentialAB
    from dinit.samplers.multistep.auto import Auto as Auto
    from dinit.samplers.multistep.deis import DEIS as DEIS
    from dinit.samplers.multistep.dpm_solver import DPMpp2S as DPMpp2S
    from dinit.samplers.multistep.dpm_solver import DPMpp3M as DPMpp3M
    from dinit.samplers.multistep.dpm_solver import DPMSolver1 as DPMSolver1
    from dinit.samplers.multistep.dpm_solver import DPMSolver2 as DPMSolver2
    from dinit.samplers.multistep.dpm_solver import DPMSolver3 as DPMSolver3
    from dinit.samplers.multistep.dpmpp import DPMpp2M as DPMpp2M
    from dinit.samplers.multistep.lms import LMS as LMS
    from dinit.samplers.multistep.pndm import IPNDM as IPNDM
    from dinit.samplers.multistep.pndm import PNDM as PNDM
    from dinit.samplers.multistep.rules import Corrector as Corrector
    from dinit.samplers.multistep.rules import Extrapolate as Extrapolate
    from dinit.samplers.multistep.rules import Pseudo as Pseudo
    from dinit.samplers.multistep.single_step import Rule as Rule
    from dinit.samplers.multistep.single_step import SingleStep as SingleStep
    from dinit.samplers.multistep.unified import Unified as Unified
    from dinit.samplers.multistep.unipc import UniPC as UniPC
    from dinit.samplers.noise import NoiseSource as NoiseSource
    from dinit.samplers.noise import RecordedNoise as RecordedNoise
    from dinit.samplers.ode.ddim import DDIM as DDIM
    from dinit.samplers.ode.dpm_adaptive import DPMAdaptive as DPMAdaptive
    from dinit.samplers.ode.edm import DPM2 as DPM2
    from dinit.samplers.ode.edm import EDMEuler as EDMEuler
    from dinit.samplers.ode.edm import EDMHeun as EDMHeun
    from dinit.samplers.ode.euler import Euler as Euler
    from dinit.samplers.ode.euler import Heun as Heun
    from dinit.samplers.ode.flow import FlowEuler as FlowEuler
    from dinit.samplers.ode.flow import FlowHeun as FlowHeun
    from dinit.samplers.ode.flow import FlowMidpoint as FlowMidpoint
    from dinit.samplers.ode.flow import FlowTurbo as FlowTurbo
    from dinit.samplers.ode.restart import Restart as Restart
    from dinit.samplers.ode.rk45 import RK45 as RK45
    from dinit.samplers.ode.runge_kutta import RK4 as RK4
    from dinit.samplers.ode.runge_kutta import Heun3 as Heun3
    from dinit.samplers.ode.runge_kutta import Midpoint as Midpoint
    from dinit.samplers.run import Step as Step
    from dinit.samplers.sde.ancestral import Ancestral as Ancestral
    from dinit.samplers.sde.ddpm import DDPM as DDPM
    from dinit.samplers.sde.dpmpp_sde import DPMpp2MSDE as DPMpp2MSDE
    from dinit.samplers.sde.dpmpp_sde import DPMpp3MSDE as DPMpp3MSDE
    from dinit.samplers.sde.dpmpp_sde import DPMppSDE as DPMppSDE
    from dinit.samplers.sde.er_sde import ERSDE as ERSDE
    from dinit.samplers.sde.euler_maruyama import EulerMaruyama as EulerMaruyama
    from dinit.samplers.sde.flow_sde import FlowSDE as FlowSDE
    from dinit.samplers.sde.predictor_corrector import PredictorCorrector as PredictorCorrector
    from dinit.samplers.sde.predictor_corrector import ReverseDiffusion as ReverseDiffusion
    from dinit.samplers.sde.sa_solver import SASolver as SASolver
    from dinit.samplers.search.solver import SolverSearch as SolverSearch
    from dinit.samplers.search.timesteps import Evolution as Evolution
    from dinit.samplers.search.timesteps import search_timesteps as search_timesteps
    from dinit.samplers.step_table import Description as Description
    from dinit.samplers.step_table import describe as describe
else:
    from dinit._exports import attach

    __getattr__, __dir__, __all__ = attach(__name__, __file__, elsewhere=("dinit.samplers.guidance",))
