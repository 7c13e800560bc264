"""Golden runs of the stochastic solvers: k-diffusion, diffusers, SiT and azula."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fnmatch import fnmatch

import torch
from golden import Golden, Levels, Pairs, covers
from torch import Tensor

from dinit.diffusion.continuous import EDM, GVP, VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.samplers import Sampler
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.sde.ancestral import Ancestral
from dinit.samplers.sde.dpmpp_sde import DPMpp2MSDE, DPMpp3MSDE, DPMppSDE
from dinit.samplers.sde.euler_maruyama import EulerMaruyama
from dinit.samplers.sde.flow_sde import FlowSDE
from dinit.samplers.sde.predictor_corrector import PredictorCorrector, renoised
from dinit.samplers.sde.sa_solver import History, SASolver

# --- k-diffusion -------------------------------------------------------------------------------------------------

K_SOLVERS = {
    "sample_euler_ancestral": Ancestral(),
    "sample_dpm_2_ancestral": Ancestral(solver="dpm-2"),
    "sample_dpmpp_2s_ancestral": Ancestral(solver="dpmpp-2s"),
    "sample_dpmpp_sde": DPMppSDE(),
    "sample_dpmpp_2m_sde": DPMpp2MSDE(),
    "sample_dpmpp_3m_sde": DPMpp3MSDE(curvature="published", max_step_ratio=math.inf),
}


def k_diffusion(golden: Golden) -> Pairs:
    given = dict(golden.kwargs)
    kind, ends = given.pop("sigmas")
    process = EDM(ends["sigma_min"], ends["sigma_max"])
    grid = {"karras": Karras(), "exponential": LogSNR()}[kind]
    times = grid.times(process, ends["n"], process.t_min, 1.0)
    if "solver_type" in given:
        given["variant"] = given.pop("solver_type")
    sampler = replace(K_SOLVERS[golden.metadata["function"]], **given)
    ours = golden.run(sampler, process, times)
    return [(times * process.sigma_max, golden["sched.sigmas"][:-1]), (ours, golden["out.trajectory"])]


# --- diffusers ---------------------------------------------------------------------------------------------------


def chain(golden: Golden) -> VPDiscrete:
    config = golden.kwargs["full_config"]
    schedule = config["beta_schedule"].replace("_", "-")
    return VPDiscrete(schedule, beta_start=config["beta_start"], beta_end=config["beta_end"])


def states(golden: Golden, sampler: Sampler, process: VPDiscrete) -> Tensor:
    """Our states at every level that their network was asked at, and the posterior mean after it."""
    times = process.time_of_noise_level(golden["sched.model_sigma"] / golden["sched.model_alpha"])
    return golden.run(sampler, process, times)


def diffusers_dpmpp_sde(golden: Golden) -> Pairs:
    config = golden.kwargs["full_config"]
    sampler = DPMpp2MSDE(variant=config["solver_type"], order=config["solver_order"])
    return [(states(golden, sampler, chain(golden)), golden["out.trajectory"])]


def diffusers_euler_ancestral(golden: Golden) -> Pairs:
    """Their state is x / alpha."""
    process = chain(golden)
    times = process.time_of_noise_level(golden["sched.sigmas"][:-1])
    alpha = torch.cat([process.scales(times).alpha, torch.ones(1)]).reshape(-1, 1, 1, 1, 1)
    ours = golden.run(Ancestral(), process, times, initial_state=golden["in.x_init"] * alpha[0])
    return [(ours / alpha, golden["out.trajectory"])]


def diffusers_kdpm2_ancestral(golden: Golden) -> Pairs:
    """Their state is x / alpha, and every other one stands between two levels."""
    process = chain(golden)
    times = process.time_of_noise_level((golden["sched.model_sigma"] / golden["sched.model_alpha"])[::2])
    alpha = torch.cat([process.scales(times).alpha, torch.ones(1)]).reshape(-1, 1, 1, 1, 1)
    ours = golden.run(Ancestral(solver="dpm-2"), process, times, initial_state=golden["in.x_init"] * alpha[0])
    theirs = golden["out.trajectory"]
    return [(ours / alpha, torch.cat([theirs[:-1:2], theirs[-1:]]))]


def diffusers_flow_stochastic(golden: Golden) -> Pairs:
    """Each step draws all noise again, which is an eta without bound."""
    times = LinearFlow().time_of_noise_level(golden["sched.model_sigma"] / golden["sched.model_alpha"])
    return [(golden.run(Ancestral(math.inf), LinearFlow(), times), golden["out.trajectory"])]


@dataclass(frozen=True)
class LowOrderFinal(SASolver):
    """Predicts the step to the time `last` with first order, as diffusers does."""

    last: float = 0.0

    def step(self, denoise, x_t, t, s, state: History | None, noise):
        order = 1 if s.floats.time == self.last else self.predictor_order
        return SASolver.step(replace(self, predictor_order=order), denoise, x_t, t, s, state, noise)


def diffusers_sa_solver(golden: Golden) -> Pairs:
    """tau is 1 for timesteps from 200 to 800 and 0 elsewhere."""
    process, config = chain(golden), golden.kwargs["full_config"]
    low, high = process.log_snr(torch.tensor([801.5, 200.5], dtype=torch.float64) / 1000).tolist()
    times = process.time_of_noise_level(golden["sched.sigmas"])
    sampler = LowOrderFinal(
        low=low,
        high=high,
        predictor_order=config["predictor_order"],
        corrector_order=config["corrector_order"],
        weights="published",
        last=float(times[-1]),
    )
    return [(golden.run(sampler, process, times, end="state"), golden["out.trajectory"])]


# --- SiT ---------------------------------------------------------------------------------------------------------


def sit(golden: Golden) -> Pairs:
    given = golden.kwargs
    last_step = (given["last_step"] or "none").lower()
    sampler = FlowSDE(
        given["diffusion_form"].lower().replace("inccreasing", "increasing"),
        given["diffusion_norm"],
        {"Euler": "euler-maruyama", "Heun": "heun"}[given["sampling_method"]],
        last_step,
    )
    process = {"Linear": LinearFlow(), "GVP": GVP(), "VP": VP()}[given["path_type"]]
    times = 1 - golden["sched.t_grid"]
    w = torch.stack([sampler.coefficient(k) for k in process.scales(times).unbind()])
    if last_step != "none":
        times = torch.cat([times, torch.zeros(1)])
    ours = golden.run(sampler, process, times, end="state")[1:]
    if last_step == "none":
        ours = torch.cat([ours, ours[-1:]])
    return [(w, golden["sched.diffusion"]), (ours, golden["out.trajectory"])]


# --- azula -------------------------------------------------------------------------------------------------------


def azula_ddim(golden: Golden) -> Pairs:
    """Their eta scales the variance of the noise, that of the paper its standard deviation."""
    process = Levels(golden["sched.t"], golden["sched.alpha"], golden["sched.sigma"])
    sampler = DDIM(math.sqrt(golden.kwargs["eta"]))
    return [(golden.run(sampler, process, golden["sched.t"], end="state"), golden["out.trajectory"])]


def azula_ito(golden: Golden) -> Pairs:
    process = Levels(golden["sched.t"], golden["sched.alpha"], golden["sched.sigma"])
    sampler = EulerMaruyama("noise-level", golden.kwargs["eta"])
    return [(golden.run(sampler, process, golden["sched.t"], end="state"), golden["out.trajectory"])]


def azula_corrector(golden: Golden) -> Pairs:
    """They correct before a step of DDIM, we after it: the first corrections, and the last step, are done here."""
    given, theirs, noise = golden.kwargs, golden["out.trajectory"], golden["in.noise"]
    path = Levels(golden["sched.t"], golden["sched.alpha"], golden["sched.sigma"])
    model, count, snr = golden.mixture(path), given["corrections"], math.sqrt(given["delta"]) / 2
    cond = model.condition(golden["in.labels"], len(golden["in.labels"]))

    def corrected(x: Tensor, i: int) -> Tensor:
        t = path.scales(path.t[i])
        for z in noise[count * i : count * (i + 1)]:
            x = renoised(model(x, t, cond), z, t, snr)
        return x

    start = corrected(theirs[0], 0)
    sampler = PredictorCorrector(DDIM(), "renoising", snr, count)
    ours = golden.run(sampler, model, path.t[:-1], initial_state=start, noise=noise[count:], end="state")
    last = golden.run(DDIM(), model, path.t[-2:], initial_state=ours[-1], end="state")[-1]
    return [(ours, torch.stack([corrected(x, i) for i, x in enumerate(theirs[:-1])])), (last, theirs[-1])]


def diffusers_sde_dpm(golden: Golden) -> Pairs:
    """The noise form, which ends at a level above 0 by a step of first order."""
    process = chain(golden)
    times = process.time_of_noise_level(golden["sched.sigmas"])
    sampler = DPMpp2MSDE(prediction="eps")
    ours = golden.run(sampler, process, times[:-1], end="state")
    first_order, z = replace(sampler, order=1), golden["in.noise"][-1:]
    last = golden.run(first_order, process, times[-2:], initial_state=ours[-1], noise=z, end="state")
    return [(torch.cat([ours, last[1:]]), golden["out.trajectory"])]


# --- all of them -------------------------------------------------------------------------------------------------

READ = {
    "k_*_ancestral*": k_diffusion,
    "k_dpmpp_*sde*": k_diffusion,
    "df_sde_dpmpp_1m_*": diffusers_dpmpp_sde,
    "df_sde_dpmpp_2m_*": diffusers_dpmpp_sde,
    "df_euler_ancestral*": diffusers_euler_ancestral,
    "df_kdpm2_ancestral*": diffusers_kdpm2_ancestral,
    "df_flow_euler_stochastic": diffusers_flow_stochastic,
    "df_sasolver*": diffusers_sa_solver,
    "sit_sde_*": sit,
    "az_ddim_*": azula_ddim,
    "az_ito_*": azula_ito,
    "az_pc_*": azula_corrector,
    "df_sde_dpm_2m": diffusers_sde_dpm,
}


@covers(*READ)
@covers("k_euler_ancestral*", "k_dpm_2_ancestral*", "k_dpmpp_2s_ancestral*", "k_dpmpp_?m_sde*")
def stochastic(golden: Golden) -> Pairs:
    """One case, so that one small file of its kind stands for all of them among the files that are shipped."""
    return next(read for pattern, read in READ.items() if fnmatch(golden.name, pattern))(golden)
