"""Golden runs of one-step solvers: torchdiffeq's fixed steps (SiT, flow_matching), EDM, k-diffusion, diffusers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from golden import Golden, Pairs, covers
from torch import Tensor

from dinit.diffusion import Process, Scales
from dinit.diffusion.continuous import EDM, GVP, VP, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.samplers import RecordedNoise, Sampler
from dinit.samplers.base import StepDenoiser, StepNoise
from dinit.samplers.grids.karras import Karras
from dinit.samplers.ode.edm import DPM2, EDMEuler, EDMHeun
from dinit.samplers.ode.euler import Euler, Heun
from dinit.samplers.ode.flow import FlowHeun
from dinit.samplers.ode.runge_kutta import RK4, Heun3, Midpoint

PATHS = {"Linear": LinearFlow(), "GVP": GVP(), "VP": VP()}
METHODS = {"midpoint": Midpoint(), "heun3": Heun3(), "rk4": RK4("3/8")}


@dataclass(frozen=True)
class Power(Process):
    """flow_matching's PolynomialConvexScheduler: alpha = (1 - t)^n, sigma = 1 - alpha."""

    n: float

    def scales(self, t: Tensor | float) -> Scales:
        t = torch.as_tensor(t, dtype=torch.float64)
        alpha, slope = (1 - t) ** self.n, self.n * (1 - t) ** (self.n - 1)
        return Scales(t, alpha, 1 - alpha, -slope, slope)

    def time_of(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError


@covers("sit_ode_*_midpoint", "sit_ode_*_heun3", "sit_ode_*_rk4", "sit_ode_*_reverse_euler")
@covers("fm_midpoint_*", "fm_heun3_*", "fm_rk4_*", "df_flow_heun_*")
def in_time(golden: Golden) -> Pairs:
    """Solvers in t and along the straight path, of three libraries."""
    if golden.name.endswith("_reverse_euler"):
        return sit_reverse(golden)
    read = {"sit": sit_fixed_steps, "fm": flow_matching_fixed_steps, "df": diffusers_flow_heun}
    return read[golden.name.split("_")[0]](golden)


def sit_reverse(golden: Golden) -> Pairs:
    """From data to noise: a step takes its times as they come."""
    model = golden.mixture(LinearFlow())
    levels = model.process.scales(1 - golden["sched.t_grid"]).unbind()
    denoise = StepDenoiser(model, model.condition(golden["in.labels"], len(golden["in.labels"])))
    states = [golden["in.x_init"]]
    for t, s in itertools.pairwise(levels):
        states.append(Euler().step(denoise, states[-1], t, s, None, StepNoise(RecordedNoise(), 0, 0))[0])
    return [(torch.stack(states), golden["out.trajectory"])]


def sit_fixed_steps(golden: Golden) -> Pairs:
    given = golden.kwargs
    sampler = METHODS[given["sampling_method"]]
    ours = golden.run(sampler, PATHS[given["path_type"]], 1 - golden["sched.t_grid"], end="state")
    return [(ours, golden["out.trajectory"])]


def flow_matching_fixed_steps(golden: Golden) -> Pairs:
    """Fixed steps, whose states are interpolated linearly to the wanted times."""
    given = golden.kwargs
    process = {"CondOTScheduler": LinearFlow(), "CosineScheduler": GVP(), "PolynomialConvexScheduler": Power(2)}
    count = round(1 / given["step_size"])
    times = torch.linspace(1, 0, count + 1, dtype=torch.float64)
    ours = golden.run(METHODS[given["method"]], process[given["scheduler"]], times, end="state")
    pairs = []
    for at, theirs in zip(given["time_grid"], golden["out.trajectory"], strict=True):
        left = min(int(at * count + 1e-9), count - 1)
        u = at * count - left
        pairs.append(((1 - u) * ours[left] + u * ours[left + 1], theirs))
    return pairs


# --- in the noise level: EDM, k-diffusion, diffusers -------------------------------------------------------------


@covers("edm_heun_18_churn", "edm_ablation_*")
@covers("k_euler_karras12_churn", "k_heun_karras12_churn", "k_dpm_2_karras12*")
@covers("df_heun", "df_kdpm2", "df_euler", "df_euler_karras_*", "df_euler_loglinear", "df_euler_trailing_*")
def in_the_noise_level(golden: Golden) -> Pairs:
    """Solvers in sigma / alpha, of three libraries."""
    if golden.name.startswith("edm_ablation"):
        return edm_ablation(golden)
    if golden.name.startswith("df_euler"):
        return diffusers_euler(golden)
    return {"edm": edm_churn, "k": k_diffusion, "df": diffusers_second_order}[golden.name.split("_")[0]](golden)


def churn(given: dict) -> dict[str, Any]:
    """Their names for the settings of churn, read as ours."""
    ours = {"S_churn": "s_churn", "S_min": "s_tmin", "S_max": "s_tmax", "S_noise": "s_noise"}
    ours |= {name: name for name in ours.values()}
    return {ours[k]: float(v) for k, v in given.items() if k in ours}


def edm_churn(golden: Golden) -> Pairs:
    process = EDM()
    times = Karras().times(process, len(golden["in.noise"]), process.t_min, 1.0)
    ours = golden.run(EDMHeun(**churn(golden.kwargs)), process, times, initial_state=golden["in.latents"] * 80)
    return [(ours, golden["out.trajectory"])]


def k_diffusion(golden: Golden) -> Pairs:
    process = EDM(0.01, 80.0)
    times = Karras().times(process, golden.kwargs["sigmas"][1]["n"], process.t_min, 1.0)
    solver = {"euler": EDMEuler, "heun": EDMHeun, "dpm": DPM2}[golden.name.split("_")[1]]
    sampler = solver(**churn(golden.kwargs))
    ours = golden.run(sampler, process, times)
    if sampler.stochastic:  # theirs are recorded after the churn
        before, after = golden["sched.callback_sigma"], golden["sched.callback_sigma_hat"]
        added = sampler.s_noise * (after**2 - before**2).clamp(min=0).sqrt()
        ours[:-1] += added.reshape(-1, 1, 1, 1, 1) * golden["in.noise"]
    return [(ours, golden["out.trajectory"])]


@dataclass(frozen=True)
class SquareRoot(Process):
    """EDM's reading of VE, sigma = sqrt(t), with t scaled to [0, 1]."""

    sigma_max: float

    def scales(self, t: Tensor | float) -> Scales:
        t = torch.as_tensor(t, dtype=torch.float64)
        sigma, one = self.sigma_max * t.sqrt(), torch.ones_like(t)
        return Scales(t, one, sigma, torch.zeros_like(t), sigma / (2 * t))

    def time_of(self, log_snr: Tensor) -> Tensor:
        return (-log_snr).exp() / self.sigma_max**2


STRETCH = 1.25  # of the VP path's time, since churn goes above their t = 1


def edm_ablation(golden: Golden) -> Pairs:
    """Their general sampler: churn, then a step that is even in the schedule's own time."""
    given = golden.kwargs
    vp = VP(0.1 * STRETCH, (0.1 + 19.9 * STRETCH) * STRETCH)
    process = {"vp": vp, "ve": SquareRoot(100.0)}.get(given.get("schedule", "linear"), EDM(0.002, 80.5))
    levels = golden["sched.model_sigma"]
    if process is vp:
        times = torch.linspace(1, 1e-3, given["num_steps"], dtype=torch.float64) / STRETCH
    elif given.get("solver") == "euler":
        times = process.time_of_noise_level(levels).clamp(max=1)
    elif "alpha" in given:  # their corrector does not stand at the levels
        times = Karras().times(EDM(), given["num_steps"], EDM().t_min, 1.0) * 80 / 80.5
    else:
        times = process.time_of_noise_level(torch.cat([levels[:1], levels[1::2]]))
    heun = EDMHeun(**churn(given), alpha=given.get("alpha", 1.0), variable="t")
    sampler = Euler() if given.get("solver") == "euler" else heun
    initial = golden["in.latents"] * process.scales(times[0]).sigma
    ours = golden.run(sampler, process, torch.cat([times, times.new_zeros(1)]), initial_state=initial, end="state")
    return [(ours, golden["out.trajectory"])]


def diffusers_second_order(golden: Golden) -> Pairs:
    sampler = EDMHeun() if golden.name == "df_heun" else DPM2()
    levels = torch.cat([golden["sched.sigmas"][:1], golden["sched.sigmas"][1::2]])
    levels = levels[levels > 0]
    theirs = torch.cat([golden["out.trajectory"][:-1:2], golden["out.final"][None]])
    return rescaled_runs(golden, sampler, levels, theirs)


def rescaled_runs(golden: Golden, sampler: Sampler, levels: Tensor, theirs: Tensor) -> Pairs:
    """Run in sigma on x / alpha: on EDM's process, and on a chain, where our state is alpha times theirs."""
    end = "state" if len(levels) == len(theirs) else "posterior-mean"
    top = float(levels[0])
    pairs = [(golden.run(sampler, EDM(top / 1e6, top), levels / top, end=end), theirs)]
    config = golden.kwargs["full_config"]
    if config.get("rescale_betas_zero_snr", False):  # their alpha is 2^-12 where ours is 0
        return pairs
    chain = VPDiscrete(config["beta_schedule"].replace("_", "-"), 1000, config["beta_start"], config["beta_end"])
    times = chain.time_of_noise_level(levels)
    ends = [0.0] if end == "posterior-mean" else []
    alpha = chain.scales(torch.cat([times, torch.tensor(ends, dtype=torch.float64)])).alpha.reshape(-1, 1, 1, 1, 1)
    ours = golden.run(sampler, chain, times, initial_state=golden["in.x_init"] * alpha[0], end=end)
    return [*pairs, (ours / alpha, theirs)]


def diffusers_euler(golden: Golden) -> Pairs:
    levels = golden["sched.sigmas"]
    return rescaled_runs(golden, EDMEuler(), levels[levels > 0], golden["out.trajectory"])


def diffusers_flow_heun(golden: Golden) -> Pairs:
    levels = torch.cat([golden["sched.model_sigma"][:1], golden["sched.model_sigma"][1::2]])
    theirs = torch.cat([golden["out.trajectory"][:-1:2], golden["out.final"][None]])
    pairs = []
    for process in (LinearFlow(), LinearFlow(3.0)):
        times = process.time_of_noise_level(levels / (1 - levels))
        pairs.append((golden.run(FlowHeun(), process, times), theirs))
    return [*pairs, (golden.run(Heun(), LinearFlow(), levels), theirs)]
