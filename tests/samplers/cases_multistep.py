"""Recorded runs of multistep and exponential solvers: UniPC, DEIS, DPM-Solver, LMS, PNDM, azula's AB family."""

from __future__ import annotations

import math
from fnmatch import fnmatch

import torch
from golden import Golden, Levels, Pairs, covers
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Scales, WrappedDenoiser
from dinit.diffusion.continuous import EDM
from dinit.diffusion.discrete import VPDiscrete
from dinit.samplers import Sampler
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.grids.timesteps import Timesteps
from dinit.samplers.multistep.adams import AdamsBashforth, ExponentialAB
from dinit.samplers.multistep.deis import DEIS
from dinit.samplers.multistep.dpm_solver import DPMpp2S, DPMpp3M, DPMSolver1, DPMSolver2, DPMSolver3
from dinit.samplers.multistep.lms import LMS
from dinit.samplers.multistep.pndm import IPNDM, PNDM
from dinit.samplers.multistep.rules import Extrapolate, Rule, lower_at_the_end
from dinit.samplers.multistep.unified import Unified
from dinit.samplers.multistep.unipc import UniPC


def levels_of(sigmas: Tensor, flow: bool) -> Levels:
    """A path of which diffusers' table of sigma / alpha (or of sigma, for flows) is all that is known."""
    alpha = 1 - sigmas if flow else (1 + sigmas**2).rsqrt()
    return Levels(torch.linspace(1, 0, len(sigmas), dtype=torch.float64), alpha, sigmas if flow else sigmas * alpha)


def diffusers_run(golden: Golden, sampler: Sampler) -> Pairs:
    """Their run, to sigma = 0 or to a level above it."""
    config, sigmas = golden.kwargs["full_config"], golden["sched.sigmas"]
    path = levels_of(sigmas, config.get("use_flow_sigmas", False))
    end = "posterior-mean" if sigmas[-1] == 0 else "state"
    return [(golden.run(sampler, path, path.t, end=end), golden["out.trajectory"])]


def diffusers_unipc(golden: Golden) -> Pairs:
    config = golden.kwargs["full_config"]
    sampler = UniPC(
        config["solver_order"],
        "x0" if config["predict_x0"] else "eps",
        config["solver_type"],
        tuple(config["disable_corrector"]),
        config["lower_order_final"],
        "lower-order",
    )
    return diffusers_run(golden, sampler)


def diffusers_deis(golden: Golden) -> Pairs:
    order = golden.kwargs["full_config"]["solver_order"]
    return diffusers_run(golden, DEIS(order, "log-rho", "lower-order", True))


def k_lms(golden: Golden) -> Pairs:
    """In x = x0 + sigma eps, down to sigma = 0 with all evaluations."""
    sigmas = golden["sched.sigmas"]
    path = Levels(torch.linspace(1, 0, len(sigmas), dtype=torch.float64), torch.ones_like(sigmas), sigmas)
    sampler = LMS(golden.kwargs.get("order", 4), "lower-order")
    return [(golden.run(sampler, path, path.t, end="state"), golden["out.trajectory"])]


def diffusers_lms(golden: Golden) -> Pairs:
    return k_lms(golden)


def azula(golden: Golden) -> Pairs:
    """Their vAB, zAB, xEAB and zEAB. Only the ends are recorded."""
    order = golden.kwargs["order"]
    sampler = {
        "vab3": AdamsBashforth(order, "velocity", "lower-order"),
        "zab3": AdamsBashforth(order, "eps", "lower-order"),
        "xeab3": ExponentialAB(order, "x0", "lower-order", math.inf),
        "zeab3": ExponentialAB(order, "eps", "lower-order", math.inf),
    }[golden.name.split("_")[1]]
    path = Levels(golden["sched.t"], golden["sched.alpha"], golden["sched.sigma"])
    ours = golden.run(sampler, path, path.t, end="state")
    return [(ours[[0, -1]], golden["out.trajectory"])]


# The parts of their single steps in x0; the third looks at its start and at the newest evaluation.
_PARTS: dict[int, Rule] = {
    1: Extrapolate("x0", 1),
    2: Extrapolate("x0", 2, variant="midpoint", start_steps_back=1),
    3: Extrapolate("x0", 2, start_steps_back=2),
}


def diffusers_dpm(golden: Golden) -> Pairs:
    config, levels = golden.kwargs["full_config"], golden.kwargs["num_inference_steps"]
    order = config["solver_order"]
    if golden.name.startswith("df_dpmpp_3m"):
        return diffusers_run(golden, DPMpp3M("published", "lower-order", config["lower_order_final"], math.inf))
    if golden.name.endswith("m"):
        rule = Extrapolate("eps", order, variant="taylor" if order == 3 else "midpoint")
        rules = lower_at_the_end([rule] * levels, False)
    else:  # a single step spreads over their grid: of order 1, 2, ... from its start to each of its times
        parts = [1 + i % order for i in range(levels)]
        if config["lower_order_final"] and order == 3 and levels % 3 == 0:
            parts[-1] = 1
        rules = [_PARTS[part] for part in parts]
    return diffusers_run(golden, Unified(tuple(rules), "lower-order"))


def diffusers_pndm(golden: Golden) -> Pairs:
    """Every evaluation is an entry of their trajectory; their last step goes to the level where it stands."""
    process = VPDiscrete("linear")
    start = "plms" if golden.kwargs["full_config"]["skip_prk_steps"] else "prk"
    times = Timesteps("leading").times(process, golden.kwargs["num_inference_steps"], process.t_min, 1.0)
    theirs = golden["out.trajectory"]
    extra = [1] if start == "plms" else [1, 2, 3, 5, 6, 7, 9, 10, 11]
    theirs = theirs[[i for i in range(len(theirs)) if i not in extra]]
    ours = golden.run(PNDM(start), process, times, end="state")
    return [(ours, theirs[:-1]), (ours[-1], theirs[-1])]


class BlindStart(WrappedDenoiser):
    """Says 0 at alpha = 0, where diffusers' iPNDM divides 0 by 1e-8 in place of asking the network."""

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        d = self.inner(x_t, t, cond)
        return Denoised(d.x_t, d.x0 * (self.scales(t).alpha > 0), d.scales)


def diffusers_ipndm(golden: Golden) -> Pairs:
    alpha, sigma = golden["sched.model_alpha"], golden["sched.model_sigma"]
    clean = torch.tensor([1.0, 0.0], dtype=torch.float64)
    times = torch.linspace(1, 0, len(alpha) + 1, dtype=torch.float64)
    path = Levels(times, torch.cat([alpha, clean[:1]]), torch.cat([sigma, clean[1:]]))
    ours = golden.run(IPNDM(), BlindStart(golden.mixture(path)), times, end="state")
    return [(ours, golden["out.trajectory"])]


def k_dpm_fast(golden: Golden) -> Pairs:
    """DPM-Solver-fast: steps of order 3, and 2 or 1 at the end, as the evaluations allow. Lu et al. 2022."""
    given = golden.kwargs
    process, count = EDM(given["sigma_min"], given["sigma_max"]), given["n"]
    orders = [3] * (count // 3 - 1) + [2, 1] if count % 3 == 0 else [3] * (count // 3) + [count % 3]
    single = {1: DPMSolver1.rule, 2: DPMSolver2.rule, 3: DPMSolver3.rule}
    times = LogSNR().times(process, len(orders) + 1, process.t_min, 1.0)
    sampler = Unified(tuple(single[order] for order in orders), "lower-order")
    return [(golden.run(sampler, process, times, end="state"), golden["out.trajectory"])]


def k_single_steps(golden: Golden) -> Pairs:
    process = EDM(0.01, 80.0)
    times = Karras().times(process, golden.kwargs["sigmas"][1]["n"], process.t_min, 1.0)
    sampler = DPMSolver2() if golden.name.startswith("k_dpm_2") else DPMpp2S()
    return [(golden.run(sampler, process, times), golden["out.trajectory"])]


DIFFUSERS = {
    "df_unipc_*": diffusers_unipc,
    "df_deis_*": diffusers_deis,
    "df_lms*": diffusers_lms,
    "df_dpm_?m": diffusers_dpm,
    "df_dpmpp_3m*": diffusers_dpm,
    "df_dpmpp_1s": diffusers_dpm,
    "df_dpmpp_2s": diffusers_dpm,
    "df_dpmpp_3s": diffusers_dpm,
    "df_pndm_*": diffusers_pndm,
    "df_ipndm": diffusers_ipndm,
}


@covers(*DIFFUSERS)
def diffusers(golden: Golden) -> Pairs:
    """Its multistep and exponential schedulers: one shipped file stands for all."""
    return next(case for pattern, case in DIFFUSERS.items() if fnmatch(golden.name, pattern))(golden)


OTHERS = {
    "k_lms_*": k_lms,
    "az_vab3_*": azula,
    "az_zab3_*": azula,
    "az_xeab3_*": azula,
    "az_zeab3_*": azula,
    "k_dpm_fast_*": k_dpm_fast,
    "k_dpm_2_karras12": k_single_steps,
    "k_dpmpp_2s_ancestral_eta0": k_single_steps,
}


@covers(*OTHERS)
def others(golden: Golden) -> Pairs:
    """k-diffusion's and azula's."""
    return next(case for pattern, case in OTHERS.items() if fnmatch(golden.name, pattern))(golden)
