"""Recorded runs of diffusers' schedulers, its guiders, and its tables of timesteps.

Multistep and exponential schedulers are run on their own table of levels, `sched.sigmas`, and, where dinit has the
chain, on that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import diffusers
import torch
from cases_guided_diffusion import betas_of, climb
from golden import Golden, Levels, NotCoveredError, Pairs, covers, known, like_states, options
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Scales, WrappedDenoiser
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.diffusion.discrete import BetaChain, VPBetas, VPDiscrete
from dinit.samplers import Sampler
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.grids.timesteps import Timesteps
from dinit.samplers.guidance import Guidance
from dinit.samplers.guidance.apg import projected
from dinit.samplers.guidance.cfg import extrapolate, restore_spread
from dinit.samplers.guidance.cfg_zero import optimal_scale
from dinit.samplers.guidance.clip import ClipX0
from dinit.samplers.guidance.threshold import DynamicThreshold
from dinit.samplers.inversion.invert import DDIMInverse
from dinit.samplers.multistep.deis import DEIS
from dinit.samplers.multistep.dpm_solver import DPMpp3M
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.multistep.lms import LMS
from dinit.samplers.multistep.pndm import IPNDM, PNDM
from dinit.samplers.multistep.rules import Extrapolate
from dinit.samplers.multistep.unified import Unified
from dinit.samplers.multistep.unipc import UniPC
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.edm import DPM2, EDMEuler, EDMHeun
from dinit.samplers.ode.euler import Euler, Heun
from dinit.samplers.ode.flow import FlowEuler, FlowHeun
from dinit.samplers.sde.ancestral import Ancestral
from dinit.samplers.sde.ddpm import DDPM
from dinit.samplers.sde.dpmpp_sde import DPMpp2MSDE
from dinit.samplers.sde.sa_solver import History, SASolver

F64 = torch.float64
SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "squared-cosine"}


def config_of(golden: Golden) -> dict[str, Any]:
    """All settings of the scheduler: those of the file, or its class's defaults where the file has only changes."""
    given = golden.kwargs
    whole = given.get("full_config")
    if whole is None:
        whole = dict(getattr(diffusers, golden.said("function"))(**given.get("config", {})).config)
    return {**whole, **{k: v for k, v in given.get("config", {}).items() if k not in whole}}


def chain_of(config: dict[str, Any]) -> BetaChain:
    zero = config.get("rescale_betas_zero_snr", False)
    if config.get("trained_betas") is not None:
        return VPBetas(config["trained_betas"], zero)
    schedule = known(SCHEDULES, config["beta_schedule"], "beta schedule")
    ends = {} if schedule == "squared-cosine" else options(config, ("beta_start", "beta_end"))
    return VPDiscrete(schedule, config["num_train_timesteps"], **ends, zero_terminal_snr=zero)


def guidance_of(config: dict[str, Any]) -> list[Guidance]:
    """What the scheduler does to its x0."""
    if config.get("thresholding"):
        return [DynamicThreshold(config["dynamic_thresholding_ratio"], largest=config["sample_max_value"])]
    return [ClipX0(config.get("clip_sample_range", 1.0))] if config.get("clip_sample") else []


def levels_that_fall(golden: Golden) -> Tensor:
    """The table sched.sigmas, whose last entry some classes repeat."""
    sigmas = golden["sched.sigmas"]
    if sigmas[-1] > 0 and sigmas[-2] <= sigmas[-1] * (1 + 1e-9):
        raise NotCoveredError("a last step of no length: the last level stands twice in its table")
    return sigmas


def steps_of(golden: Golden) -> int:
    return golden.kwargs.get("num_inference_steps") or len(golden["sched.timesteps"])


# --- DDIM and DDPM, on the chain's timesteps ---------------------------------------------------------------------


def down(golden: Golden) -> Tensor:
    """The timesteps of a run, from the noisiest, each once."""
    timesteps = golden["sched.timesteps"].double()
    if not config_of(golden).get("skip_prk_steps", True):  # 4 evaluations in each of the first 3 steps
        timesteps = torch.cat([timesteps[:12:4], timesteps[12:]])
    return timesteps.unique().flip(0)


def times_of(golden: Golden, config: dict[str, Any], process: BetaChain) -> tuple[Tensor, Pairs]:
    """The times of the recorded timesteps, which our spacing must give."""
    timesteps = down(golden)
    times = (timesteps + 1) / process.num_steps
    if golden.kwargs.get("set_timesteps_kwargs"):
        return times, []
    spacing = config["timestep_spacing"]
    grid = Timesteps(spacing, config.get("steps_offset", 0) if spacing == "leading" else 0)
    ours = grid.times(process, steps_of(golden), process.t_min, 1.0)
    return times, [((ours * process.num_steps - 1).round(), timesteps)]


def check_even_steps(golden: Golden, process: BetaChain) -> None:
    """DDIM and PNDM go from t to t - T // n, which is the next timestep of most spacings only."""
    timesteps, step = down(golden).long().tolist(), process.num_steps // steps_of(golden)
    if any(t - s != step for t, s in pairwise(timesteps)) or timesteps[-1] >= step:
        raise NotCoveredError(
            f"a run whose steps go from t to t - {step} (timesteps // steps), which are not the levels of its "
            f"timesteps {timesteps[:3]} .. {timesteps[-2:]}"
        )


@covers("diffusers", "DDIMScheduler", tolerance=1e-9)
def ddim(golden: Golden) -> Pairs:
    config, given = config_of(golden), golden.kwargs.get("step_kwargs", {})
    process, guidance = chain_of(config), guidance_of(config)
    if guidance and not given.get("use_clipped_model_output"):
        raise NotCoveredError("x0 is clipped, and eps is kept as it was before (use_clipped_model_output is off)")
    check_even_steps(golden, process)
    times, pairs = times_of(golden, config, process)
    end = "posterior-mean"
    if not config["set_alpha_to_one"]:  # the last step then goes to the cleanest level
        last = times.new_tensor([process.t_min])
        times, end = torch.cat([times, last[last < times[-1]]]), "state"
    ours = golden.run(DDIM(given.get("eta", 0.0)), process, times, guidance=guidance, end=end)
    theirs = golden.trajectory
    if len(ours) < len(theirs):  # the last step stands still
        ours = torch.cat([ours, ours[-1:]])
    return [*pairs, (ours, theirs)]


@covers("diffusers", "DDIMInverseScheduler", tolerance=1e-9)
def ddim_inverse(golden: Golden) -> Pairs:
    """From clean data: their first step is one from alpha = 1, or from the cleanest level."""
    config = config_of(golden)
    process, guidance = chain_of(config), guidance_of(config)
    if guidance:
        raise NotCoveredError("x0 is clipped, and eps is kept as it was before")
    if not config["set_alpha_to_one"]:
        raise NotCoveredError("an inversion that starts at the chain's first level without standing there")
    check_even_steps(golden, process)
    times, pairs = times_of(golden, config, process)
    times = torch.cat([times, times.new_zeros(1)])
    return [*pairs, (climb(golden, DDIMInverse(), golden.mixture(process), times), golden.trajectory)]


@covers("diffusers", "DDPMScheduler", tolerance=1e-9)
def ddpm(golden: Golden) -> Pairs:
    config = config_of(golden)
    process = chain_of(config)
    variances = {"fixed_small": "fixed-small", "fixed_small_log": "fixed-small", "fixed_large": "fixed-large"}
    sampler = DDPM(known(variances, config["variance_type"], "variance_type"))
    times, pairs = times_of(golden, config, process)
    ours, theirs = golden.run(sampler, process, times, guidance=guidance_of(config)), golden.trajectory
    if golden["sched.timesteps"].min() > 0:
        # diffusers takes the last step to clean data from a level above 0, and adds noise to the sample.
        return [*pairs, (ours[:-1], theirs[:-1]), (ours[-1], golden["out.pred_x0_per_call"][-1])]
    return [*pairs, (ours, theirs)]


# --- multistep, on the table of levels ---------------------------------------------------------------------------


def levels_of(sigmas: Tensor, kind: str) -> Levels:
    """A path of which diffusers' table (of sigma / alpha, or of sigma for flows) is all that is known."""
    alpha = {"vp": (1 + sigmas**2).rsqrt(), "flow": 1 - sigmas, "edm": torch.ones_like(sigmas)}[kind]
    return Levels(torch.linspace(1, 0, len(sigmas), dtype=F64), alpha, sigmas * (alpha if kind == "vp" else 1))


def kind_of(config: dict[str, Any]) -> str:
    if "sigma_data" in config:
        return "edm"
    return "flow" if config.get("use_flow_sigmas") else "vp"


def run(golden: Golden, sampler: Sampler) -> Pairs:
    """Their run, to sigma = 0 or to a level above it."""
    config, sigmas = config_of(golden), levels_that_fall(golden)
    path, guidance = levels_of(sigmas, kind_of(config)), guidance_of(config)
    end = "posterior-mean" if sigmas[-1] == 0 else "state"
    theirs = golden.trajectory
    pairs = [(golden.run(sampler, path, path.t, guidance=guidance, end=end), theirs)]
    if kind_of(config) == "vp":
        chain = chain_of(config)
        times = chain.time_of_noise_level(sigmas[sigmas > 0])
        pairs.append((golden.run(sampler, chain, times, guidance=guidance, end=end), theirs))
        pairs += table_of(golden, config, chain)
    return pairs


def table_of(golden: Golden, config: dict[str, Any], chain: BetaChain) -> Pairs:
    """Our levels and theirs at the timesteps, where no other spacing of the levels takes their place."""
    if any(value for key, value in config.items() if re.fullmatch(r"use_\w+_(sigmas|lambdas)", key)):
        return []
    theirs = golden["sched.sigmas"][: len(golden["sched.timesteps"])]
    ours = chain.scales((golden["sched.timesteps"].double() + 1) / chain.num_steps).noise_level
    known_to_both = slice(1 if chain.zero_terminal_snr else 0, None)  # where alpha is 0, theirs is 2^-12
    return [(ours[known_to_both], theirs[known_to_both])]


def orders_of(config: dict[str, Any], steps: int, *, to_zero: bool) -> list[int]:
    """The orders of the multistep schedulers: they rise with the history, and may fall at the end."""
    few = config["lower_order_final"] and steps < 15
    orders = [min(config["solver_order"], i + 1) for i in range(steps)]
    if few and steps > 1:
        orders[-2] = min(orders[-2], 2)
    if few or to_zero or config.get("euler_at_final"):
        orders[-1] = 1
    return orders


def variant_of(config: dict[str, Any], order: int) -> Any:
    """Their 'heun' is the exact integral of a line."""
    return (
        "taylor"
        if order == 3
        else known({"midpoint": "midpoint", "heun": "exact"}, config["solver_type"], "solver_type")
    )


@covers("diffusers", "DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler")
def dpm_multistep(golden: Golden) -> Pairs:
    config, sigmas = config_of(golden), levels_that_fall(golden)
    algorithm, steps = config["algorithm_type"], steps_of(golden)
    to_zero = bool(sigmas[-1] == 0)
    orders = orders_of(config, steps, to_zero=to_zero)
    if algorithm.startswith("sde-"):
        return stochastic_multistep(golden, config, orders)
    prediction = known({"dpmsolver++": "x0", "dpmsolver": "eps"}, algorithm, "algorithm_type")
    rules = [Extrapolate(prediction, order, variant=variant_of(config, order)) for order in orders]
    pairs = run(golden, Unified(tuple(rules), "lower-order"))
    # The sampler by name, where it has these orders.
    plain = [min(config["solver_order"], i + 1) for i in range(steps - to_zero)]
    if prediction == "x0" and config["solver_order"] < 3 and orders[: len(plain)] == plain:
        pairs += run(golden, DPMpp2M(config["solver_type"], config["solver_order"]))
    published = config["solver_order"] == 3 and config["solver_type"] == "midpoint"  # that of the first steps
    if prediction == "x0" and published and not config.get("euler_at_final"):
        pairs += run(golden, DPMpp3M("published", "lower-order", config["lower_order_final"], math.inf))
    return pairs


def stochastic_multistep(golden: Golden, config: dict[str, Any], orders: Sequence[int]) -> Pairs:
    if config["solver_order"] > 2:
        raise NotCoveredError("SDE-DPM-Solver++ of order 3: a sign of its third-order term is wrong")
    predictions = {"sde-dpmsolver++": "x0", "sde-dpmsolver": "eps"}
    prediction = known(predictions, config["algorithm_type"], "algorithm_type")
    if prediction == "eps" and config["solver_type"] != "midpoint":
        raise NotCoveredError(f"solver_type {config['solver_type']!r} of the stochastic noise form")
    sampler = DPMpp2MSDE(variant=config["solver_type"], order=config["solver_order"], prediction=prediction)
    sigmas = golden["sched.sigmas"]
    if sigmas[-1] == 0 or orders[-1] == sampler.order:
        return run(golden, sampler)
    # A step of first order to a level above 0.
    path, theirs, guidance = levels_of(sigmas, kind_of(config)), golden.trajectory, guidance_of(config)
    ours = golden.run(sampler, path, path.t[:-1], guidance=guidance, end="state")
    first_order, z = replace(sampler, order=1), golden["in.noise"][-1:]
    last = golden.run(
        first_order, path, path.t[-2:], guidance=guidance, initial_state=ours[-1], noise=z, end="state"
    )
    return [(torch.cat([ours, last[1:]]), theirs)]


def single_step_orders(config: dict[str, Any], steps: int, *, to_zero: bool) -> list[int]:
    """1, 2, .., order, over and over: the parts of single steps, each of which ends at one of the levels."""
    order = config["solver_order"]
    orders = [1 + i % order for i in range(steps)]
    if to_zero or (config["lower_order_final"] and steps % order == 0):
        orders[-1] = 1
    return orders


@covers("diffusers", "DPMSolverSinglestepScheduler")
def dpm_single_step(golden: Golden) -> Pairs:
    """The second part of a step starts one level back, the third two."""
    config = config_of(golden)
    prediction = known(
        {"dpmsolver++": "x0", "dpmsolver": "eps"}, config["algorithm_type"], "single-step algorithm_type"
    )
    third = {"midpoint": 2, "heun": 3}[config["solver_type"]]  # evaluations in the third part
    parts = {
        1: Extrapolate(prediction, 1),
        2: Extrapolate(prediction, 2, variant=variant_of(config, 2), start_steps_back=1),
        3: Extrapolate(prediction, third, start_steps_back=2),
    }
    orders = single_step_orders(config, steps_of(golden), to_zero=bool(golden["sched.sigmas"][-1] == 0))
    rules = tuple(parts[order] for order in orders)
    return run(golden, Unified(rules, "lower-order"))


@covers("diffusers", "UniPCMultistepScheduler")
def unipc(golden: Golden) -> Pairs:
    config = config_of(golden)
    if config.get("solver_p") is not None:
        raise NotCoveredError("UniPC with another predictor (solver_p)")
    sampler = UniPC(
        config["solver_order"],
        "x0" if config["predict_x0"] else "eps",
        config["solver_type"],
        tuple(config["disable_corrector"]),
        config["lower_order_final"],
        "lower-order",
    )
    return run(golden, sampler)


@covers("diffusers", "DEISMultistepScheduler")
def deis(golden: Golden) -> Pairs:
    config = config_of(golden)
    lower = config["lower_order_final"] and steps_of(golden) < 15
    return run(golden, DEIS(config["solver_order"], "log-rho", "lower-order", lower))


@dataclass(frozen=True)
class LowOrderFinal(SASolver):
    """Predicts its last steps with orders that fall to 1, as diffusers does. `last`: their ends, the last first."""

    last: tuple[float, ...] = ()

    def step(self, denoise, x_t, t, s, state: History | None, noise):
        orders = self.predictor_order, self.corrector_order
        if s.floats.time in self.last:
            left = 1 + self.last.index(s.floats.time)
            orders = min(orders[0], left), min(orders[1], left + 2)  # this step, and the one that it corrects
        lowered = replace(self, predictor_order=orders[0], corrector_order=orders[1])
        return SASolver.step(lowered, denoise, x_t, t, s, state, noise)


@covers("diffusers", "SASolverScheduler")
def sa_solver(golden: Golden) -> Pairs:
    """tau is 1 for timesteps from 200 to 800 and 0 elsewhere: the class's own, as a function is no JSON."""
    config, sigmas, timesteps = config_of(golden), levels_that_fall(golden), golden["sched.timesteps"]
    if config["algorithm_type"] != "data_prediction":
        raise NotCoveredError(f"SA-Solver's {config['algorithm_type']}")
    path = levels_of(sigmas, kind_of(config))
    rising = 2 * (path.alpha / path.sigma).log()
    noisy = [i for i, t in enumerate(timesteps.tolist()) if 200 <= t <= 800]
    first, last = (noisy[0], noisy[-1]) if noisy else (0, 0)
    low = float(rising[first - 1 : first + 1].mean()) if first else -math.inf
    high = float(rising[last : last + 2].mean()) if last + 1 < len(timesteps) else math.inf
    sampler = LowOrderFinal(
        tau=1.0 if noisy else 0.0,
        low=low,
        high=high,
        predictor_order=config["predictor_order"],
        corrector_order=config["corrector_order"],
        weights="published",
    )

    def lowered(times: Tensor) -> SASolver:
        ends = times.flip(0).tolist() if config["lower_order_final"] else []
        return replace(sampler, last=tuple(ends))

    theirs, guidance = golden.trajectory, guidance_of(config)
    pairs = [(golden.run(lowered(path.t), path, path.t, guidance=guidance, end="state"), theirs)]
    if kind_of(config) == "vp":
        chain = chain_of(config)
        times = chain.time_of_noise_level(sigmas)
        pairs.append((golden.run(lowered(times), chain, times, guidance=guidance, end="state"), theirs))
    return pairs


@covers("diffusers", "LMSDiscreteScheduler")
def lms(golden: Golden) -> Pairs:
    """In x = x0 + sigma eps, down to sigma = 0 with all evaluations."""
    path = levels_of(golden["sched.sigmas"], "edm")
    sampler = LMS(golden.kwargs.get("step_kwargs", {}).get("order", 4), "lower-order")
    return [(golden.run(sampler, path, path.t, end="state"), golden.trajectory)]


@covers("diffusers", "PNDMScheduler", tolerance=1e-9)
def pndm(golden: Golden) -> Pairs:
    """Every evaluation is an entry of their trajectory; their last step goes to the chain's first level."""
    config = config_of(golden)
    process = chain_of(config)
    check_even_steps(golden, process)
    start = "plms" if config["skip_prk_steps"] else "prk"
    if start == "prk" and (process.num_steps // steps_of(golden)) % 2:
        raise NotCoveredError("Runge-Kutta steps of an odd number of timesteps, whose middle is rounded")
    if config.get("set_alpha_to_one"):
        raise NotCoveredError("PNDM's last step to clean data, which is extrapolated: ours is the posterior mean")
    times, pairs = times_of(golden, config, process)
    theirs = golden.trajectory
    extra = {1} if start == "plms" else {1, 2, 3, 5, 6, 7, 9, 10, 11}
    theirs = theirs[[i for i in range(len(theirs)) if i not in extra]]
    still = bool(times[-1] <= process.t_min * (1 + 1e-9))  # their last step goes to the level where it stands
    if not still:
        times = torch.cat([times, times.new_tensor([process.t_min])])
    ours = golden.run(PNDM(start), process, times, end="state")  # type: ignore[arg-type]
    return [*pairs, (torch.cat([ours, ours[-1:]]) if still else ours, theirs)]


class BlindStart(WrappedDenoiser):
    """Predicts 0 at alpha = 0, where diffusers' iPNDM divides 0 by 1e-8 in place of evaluating the network."""

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        d = self.inner(x_t, t, cond)
        return Denoised(d.x_t, d.x0 * (self.scales(t).alpha > 0), d.scales)


@covers("diffusers", "IPNDMScheduler")
def ipndm(golden: Golden) -> Pairs:
    alpha, sigma = golden["sched.model_alpha"], golden["sched.model_sigma"]
    clean = torch.tensor([1.0, 0.0], dtype=F64)
    times = torch.linspace(1, 0, len(alpha) + 1, dtype=F64)
    path = Levels(times, torch.cat([alpha, clean[:1]]), torch.cat([sigma, clean[1:]]))
    ours = golden.run(IPNDM(), BlindStart(golden.mixture(path)), times, end="state")
    return [(ours, golden.trajectory)]


# --- in the noise level ------------------------------------------------------------------------------------------


def rescaled_runs(golden: Golden, sampler: Sampler, levels: Tensor, theirs: Tensor) -> Pairs:
    """Run in sigma on x / alpha: on EDM's process, and on a chain, where our state is alpha times theirs."""
    config = config_of(golden)
    guidance = guidance_of(config)
    end = "state" if len(levels) == len(theirs) else "posterior-mean"
    top = float(levels[0])
    process = EDM(top / 1e6, top)
    pairs = [(golden.run(sampler, process, levels / top, guidance=guidance, end=end), theirs)]
    if kind_of(config) != "vp" or config.get("rescale_betas_zero_snr"):  # their alpha is 2^-12 where ours is 0
        return pairs
    chain = chain_of(config)
    times = chain.time_of_noise_level(levels)
    ends = [0.0] if end == "posterior-mean" else []
    alpha = like_states(chain.scales(torch.cat([times, torch.tensor(ends, dtype=F64)])).alpha, theirs)
    start = golden["in.x_init"] * alpha[0]
    ours = golden.run(sampler, chain, times, guidance=guidance, initial_state=start, end=end)
    return [*pairs, (ours / alpha, theirs)]


@covers("diffusers", "EulerDiscreteScheduler")
def euler(golden: Golden) -> Pairs:
    if golden.kwargs.get("step_kwargs", {}).get("s_churn"):
        raise NotCoveredError("Euler with churn: diffusers evaluates before the noise is raised, and not after")
    levels = levels_that_fall(golden)
    return rescaled_runs(golden, EDMEuler(), levels[levels > 0], golden.trajectory)


@covers("diffusers", "EulerAncestralDiscreteScheduler")
def euler_ancestral(golden: Golden) -> Pairs:
    levels = golden["sched.sigmas"]
    return rescaled_runs(golden, Ancestral(), levels[levels > 0], golden.trajectory)


def whole_steps(golden: Golden) -> tuple[Tensor, Tensor]:
    """Levels and states between steps of two evaluations, of which diffusers makes two."""
    levels = torch.cat([golden["sched.sigmas"][:1], golden["sched.sigmas"][1::2]])
    theirs = golden.trajectory
    return levels[levels > 0], torch.cat([theirs[:-1:2], theirs[-1:]])


@covers("diffusers", "HeunDiscreteScheduler")
def heun(golden: Golden) -> Pairs:
    return rescaled_runs(golden, EDMHeun(), *whole_steps(golden))


@covers("diffusers", "KDPM2DiscreteScheduler")
def kdpm2(golden: Golden) -> Pairs:
    return rescaled_runs(golden, DPM2(), *whole_steps(golden))


@covers("diffusers", "KDPM2AncestralDiscreteScheduler")
def kdpm2_ancestral(golden: Golden) -> Pairs:
    levels = (golden["sched.model_sigma"] / golden["sched.model_alpha"])[::2]
    return rescaled_runs(golden, Ancestral(solver="dpm-2"), levels, whole_steps(golden)[1])


@covers("diffusers", "EDMEulerScheduler")
def edm_euler(golden: Golden) -> Pairs:
    if golden.kwargs.get("step_kwargs", {}).get("s_churn"):
        raise NotCoveredError("Euler with churn: diffusers evaluates before the noise is raised, and not after")
    config, sigmas = config_of(golden), levels_that_fall(golden)
    process, grids = EDM(config["sigma_min"], config["sigma_max"]), {"karras": Karras(config["rho"])}
    levels, theirs = sigmas[sigmas > 0], golden.trajectory
    pairs = []
    if config["final_sigmas_type"] == "zero":
        grid = known({**grids, "exponential": LogSNR()}, config["sigma_schedule"], "sigma_schedule")
        pairs.append((grid.times(process, steps_of(golden), process.t_min, 1.0) * process.sigma_max, levels))
    for sampler in (Euler(), EDMEuler()):
        pairs += rescaled_runs(golden, sampler, levels, theirs)
    return pairs


# --- flow matching -----------------------------------------------------------------------------------------------


def flow_times(golden: Golden) -> Tensor:
    if config_of(golden).get("invert_sigmas"):
        raise NotCoveredError("inverted sigmas, whose run goes from data to noise")
    return golden["sched.model_sigma"] / (golden["sched.model_alpha"] + golden["sched.model_sigma"])


@covers("diffusers", "FlowMatchEulerDiscreteScheduler")
def flow_euler(golden: Golden) -> Pairs:
    """A stochastic step draws all noise again, which is an eta without bound."""
    times, theirs = flow_times(golden), golden.trajectory
    stochastic = config_of(golden).get("stochastic_sampling")
    samplers = (Ancestral(math.inf),) if stochastic else (FlowEuler(), Euler(), DDIM())
    return [(golden.run(sampler, LinearFlow(), times), theirs) for sampler in samplers]


@covers("diffusers", "FlowMatchHeunDiscreteScheduler")
def flow_heun(golden: Golden) -> Pairs:
    """Flow steps of a path do not depend on its parametrization: also on one that is shifted in t."""
    if any(golden.kwargs.get("step_kwargs", {}).get(key) for key in ("s_churn", "s_tmin")):
        raise NotCoveredError("Heun of flow matching with churn")
    times = flow_times(golden)
    levels = torch.cat([times[:1], times[1::2]])
    theirs = golden.trajectory
    theirs = torch.cat([theirs[:-1:2], theirs[-1:]])
    pairs = []
    for process in (LinearFlow(), LinearFlow(3.0)):
        at = process.time_of_noise_level(levels / (1 - levels))
        pairs.append((golden.run(FlowHeun(), process, at), theirs))
    return [*pairs, (golden.run(Heun(), LinearFlow(), levels), theirs)]


# --- guiders and tables ------------------------------------------------------------------------------------------


@covers("diffusers", "ClassifierFreeGuidance*", tolerance=1e-12)
def guiders(golden: Golden) -> Pairs:
    given, free, config = golden["in.pred_cond"], golden["in.pred_uncond"], golden.kwargs
    scale, radius = config["guidance_scale"], config["apg_norm_threshold"]
    guided = extrapolate(given, free, scale)
    fitted = optimal_scale(given.float(), free.float()).double()  # theirs computes it so
    pairs = [
        (guided, golden["out.cfg"]),
        (extrapolate(given, free, 1 + scale), golden["out.cfg_original_formulation"]),
        (restore_spread(guided, given, config["guidance_rescale"]), golden["out.cfg_rescaled"]),
        (fitted.reshape(-1, 1), golden["out.cfg_zero_star_scale"]),
        (extrapolate(given, fitted * free, scale), golden["out.cfg_zero_star"]),
    ]
    # Theirs adds the update to the unconditional prediction; the paper and ours, to the conditional one.
    (eta, eta_momentum), momentum = config["apg_eta"], config["apg_momentum"]
    after = golden["in.pred_cond_next"]
    running = after - free + momentum * (given - free)
    for key, theirs in golden.under("out.apg_").items():
        if key == "momentum_step1":
            update = projected(running, after, eta_momentum, radius)
        else:
            update = projected(given - free, given, eta_momentum if "momentum" in key else eta, radius)
        pairs.append((free + scale * update, theirs))
    return pairs


@covers("diffusers", "set_timesteps", tolerance=1e-12)
def tables(golden: Golden) -> Pairs:
    """Betas, and the levels of the spacings of DDIM and DDPM (the multistep classes have tables of their own)."""
    named = {**SCHEDULES, "cosine": "squared-cosine"}
    pairs: Pairs = []
    chains = {}
    for name, betas in golden.under("sched.betas/").items():
        if "/" in name:  # rescaled to zero terminal SNR, where 1 - alpha-bar has no digits left at the end
            continue
        first, last = betas[[0, -1]].tolist()
        ends = {} if named.get(name) == "squared-cosine" else {"beta_start": first, "beta_end": last}
        chains[name] = VPDiscrete(known(named, name, "beta schedule"), len(betas), **ends)
        pairs.append((betas_of(chains[name]), betas))
    key = re.compile(r"(?:DDIM|DDPM)/(\w+)/(\w+)/none/(zerosnr/)?n(\d+)/(timesteps|alphas_cumprod_at_t)")
    for name, theirs in golden.under("sched.").items():
        found = key.fullmatch(name)
        if found:
            process = replace(chains[found[1]], zero_terminal_snr=bool(found[3]))
            times = Timesteps(found[2]).times(process, int(found[4]), process.t_min, 1.0)  # type: ignore[arg-type]
            ours = (process.num_steps * times - 1).round()
            pairs.append((ours if found[5] == "timesteps" else process.scales(times).alpha ** 2, theirs.double()))
    return pairs
