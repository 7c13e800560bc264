"""Recorded runs of SiT and flow_matching, which share torchdiffeq's solvers and the direction of time."""

from __future__ import annotations

import itertools
import math
import re
from typing import Any

import torch
from golden import FormulaPath, Golden, NotCoveredError, Pairs, covers, error, known, options
from torch import Tensor

from dinit.diffusion import Process
from dinit.diffusion.continuous import GVP, VP, LinearFlow
from dinit.likelihood.ode import Exact, Hutchinson, log_likelihood
from dinit.samplers import RecordedNoise
from dinit.samplers.base import StepDenoiser, StepNoise
from dinit.samplers.guidance.cfg import CFG
from dinit.samplers.multistep.ode_variables import TIME
from dinit.samplers.ode.euler import Euler, Heun
from dinit.samplers.ode.rk45 import RK45
from dinit.samplers.ode.runge_kutta import RK4, Heun3, Midpoint, RungeKutta
from dinit.samplers.sde.flow_sde import FlowSDE

METHODS: dict[str, Any] = {
    "euler": Euler(),
    "heun2": Heun(),
    "midpoint": Midpoint(),
    "heun3": Heun3(),
    "rk4": RK4("3/8"),
}
ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
PATHS: dict[str, Process] = {"Linear": LinearFlow(), "GVP": GVP(), "VP": VP()}
GUIDED_CHANNELS = 3  # by SiT's forward_with_cfg, whatever the number of channels
F64 = torch.float64


def adaptive_tolerance(golden: Golden) -> float:
    """Of an adaptive run against the exact solution; 1e-10 of a run in fixed steps."""
    given = golden.kwargs
    method = given.get("sampling_method") or given.get("method")
    return 10 * given["rtol"] if method in ADAPTIVE else 1e-10


def adaptive(golden: Golden, process: Process, times: Tensor, exact: str) -> Pairs:
    """States of an adaptive run belong to its controller; its end is held to the exact solution."""
    if exact not in golden.tensors:
        raise NotCoveredError(f"an adaptive run without the exact solution, {exact}")
    given = golden.kwargs
    ours = golden.run(RK45(given["rtol"], given["atol"]), process, times, end="state")
    return [(ours[-1], golden[exact])]


# --- SiT ---------------------------------------------------------------------------------------------------------


def path_of(golden: Golden) -> Process:
    return known(PATHS, golden.kwargs["path_type"], "path")


@covers("sit", "*Sampler.sample_ode", tolerance=adaptive_tolerance)
def sit_ode(golden: Golden) -> Pairs:
    given, process = golden.kwargs, path_of(golden)
    times, method = 1 - golden["sched.t_grid"], given["sampling_method"]
    guidance = CFG(given["cfg_scale"], channels=GUIDED_CHANNELS) if given.get("cfg_scale") is not None else None
    if method in ADAPTIVE:
        if guidance or given.get("reverse"):
            raise NotCoveredError("an adaptive run that is guided, or goes from data to noise")
        return adaptive(golden, process, times, "out.exact_at_t1")
    sampler = known(METHODS, method, "solver")
    if given.get("reverse"):
        return [(upward(golden, sampler, process, times), golden.trajectory)]
    return [(golden.run(sampler, process, times, guidance=guidance, end="state"), golden.trajectory)]


def upward(golden: Golden, sampler: RungeKutta, process: Process, times: Tensor) -> Tensor:
    """From data to noise: a step takes its times as they come."""
    model = golden.mixture(process)
    points, states = process.scales(times).unbind(), [golden["in.x_init"]]
    for t, s in itertools.pairwise(points):
        inner = process.scales(sampler.inner_times(model, t, s, 0)).unbind() if sampler.method().nodes else ()
        denoise = StepDenoiser(model, model.condition(golden.labels, len(states[0])), tuple(inner))
        states.append(sampler.step(denoise, states[-1], t, s, None, StepNoise(RecordedNoise(), 0, 0))[0])
    return torch.stack(states)


@covers("sit", "*Sampler.sample_sde", tolerance=lambda g: 1e-8 if g.kwargs["diffusion_form"] == "SBDM" else 1e-10)
def sit_sde(golden: Golden) -> Pairs:
    given = golden.kwargs
    last_step = (given["last_step"] or "none").lower()
    methods = {"Euler": "euler-maruyama", "Heun": "heun"}
    sampler = FlowSDE(
        form_of(given["diffusion_form"]),
        given["diffusion_norm"],
        known(methods, given["sampling_method"], "solver"),
        last_step,  # type: ignore[arg-type]
    )
    process = path_of(golden)
    times = 1 - golden["sched.t_grid"]
    w = torch.stack([sampler.coefficient(k) for k in process.scales(times).unbind()])
    if last_step != "none":
        times = torch.cat([times, torch.zeros(1)])
    ours = golden.run(sampler, process, times, end="state")[1:]
    if last_step == "none":
        ours = torch.cat([ours, ours[-1:]])
    return [(w, golden["sched.diffusion"]), (ours, golden.trajectory)]


def form_of(name: str) -> str:
    return name.lower().replace("inccreasing", "increasing")


@covers("sit", "ICPlan*")
def sit_paths(golden: Golden) -> Pairs:
    """Their time runs the other way. A coefficient that is infinite at an end is compared where it is finite."""
    pairs = []
    norm = golden.kwargs.get("norm", 1.0)
    for name in sorted({key.split("/")[0] for key in golden.under("sched.") if "/" in key}):
        process = known(PATHS, name, "path")
        k = process.scales(1 - golden["sched.t"])
        theirs = golden.under(f"sched.{name}/")
        ours = {"alpha": k.alpha, "sigma": k.sigma, "d_alpha": -k.d_alpha, "d_sigma": -k.d_sigma}
        ours["d_alpha_over_alpha"] = -process.drift(k.time)
        for key in theirs:
            form = key.removeprefix("diffusion/")
            if form != key:
                ours[key] = FlowSDE(form_of(form), norm).coefficient(k).expand_as(theirs[key])
        for key, value in ours.items():
            finite = theirs[key].isfinite() & value.isfinite()
            pairs.append((value[finite], theirs[key][finite]))
    return pairs


# --- flow_matching -----------------------------------------------------------------------------------------------


def polynomial(n: float) -> FormulaPath:
    """flow_matching's PolynomialConvexScheduler."""
    return FormulaPath(lambda t: ((1 - t) ** n, 1 - (1 - t) ** n))


LINEAR_VP = FormulaPath(lambda t: (1 - t, (1 - (1 - t) ** 2).sqrt()))


def scheduler_of(golden: Golden) -> Process:
    """The scheduler may come as a name, or as a name and its options."""
    given = golden.kwargs
    name, *rest = [given["scheduler"]] if isinstance(given["scheduler"], str) else given["scheduler"]
    chosen = {**given, **given.get("scheduler_kwargs", {}), **(rest[0] if rest else {})}
    makers = {
        "CondOTScheduler": LinearFlow,
        "CosineScheduler": GVP,
        "LinearVPScheduler": lambda: LINEAR_VP,
        "VPScheduler": lambda: VP(**options(chosen, ("beta_min", "beta_max"))),
        "PolynomialConvexScheduler": lambda: polynomial(chosen["n"]) if "n" in chosen else exponent_of(golden),
    }
    return known(makers, name, "scheduler")()


def exponent_of(golden: Golden) -> Process:
    """The exponent of a polynomial path that the settings do not tell: the one that meets the recorded end best."""
    paths = [polynomial(n) for n in range(1, 9)]
    return min(paths, key=lambda path: error(fixed_steps(golden, path)[-1], golden["out.final"]))


def fixed_grid(golden: Golden) -> Tensor:
    """torchdiffeq's: steps of one size from the first time wanted, the last one shorter; or the times wanted."""
    wanted, size = golden.kwargs["time_grid"], golden.kwargs.get("step_size")
    if size is None:
        return torch.tensor(wanted, dtype=F64)
    count = math.ceil((wanted[-1] - wanted[0]) / size + 1 - 1e-9)
    grid = wanted[0] + size * torch.arange(count, dtype=F64)
    grid[-1] = wanted[-1]
    return grid


def fixed_steps(golden: Golden, process: Process) -> list[Tensor]:
    """Our states, interpolated linearly to the times wanted, as theirs are."""
    grid, sampler = fixed_grid(golden), known(METHODS, golden.kwargs["method"], "solver")
    ours = golden.run(sampler, process, 1 - grid, end="state")
    states = []
    for at in golden.kwargs["time_grid"]:
        left = min(int((grid <= at + 1e-12).sum()) - 1, len(grid) - 2)
        u = (at - grid[left]) / (grid[left + 1] - grid[left])
        states.append((1 - u) * ours[left] + u * ours[left + 1])
    return states


@covers("flow_matching", "ODESolver.sample", tolerance=adaptive_tolerance)
def flow_matching_ode(golden: Golden) -> Pairs:
    given, process = golden.kwargs, scheduler_of(golden)
    if given["method"] in ADAPTIVE:
        return adaptive(golden, process, 1 - torch.tensor(given["time_grid"], dtype=F64), "out.exact_at_end")
    return list(zip(fixed_steps(golden, process), golden.trajectory, strict=True))


@covers("flow_matching", "Scheduler.__call__*")
def flow_matching_paths(golden: Golden) -> Pairs:
    pairs = []
    named: dict[str, Process] = {"CondOT": LinearFlow(), "Cosine": GVP(), "VP": VP(), "LinearVP": LINEAR_VP}
    for name in sorted({key.split("/")[0] for key in golden.under("sched.") if "/" in key}):
        power = re.fullmatch(r"Polynomial([\d.]+)", name)
        process = polynomial(float(power[1])) if power else known(named, name, "path")
        k = process.scales(1 - golden["sched.t"])
        theirs = golden.under(f"sched.{name}/")
        ours = {"alpha_t": k.alpha, "sigma_t": k.sigma, "d_alpha_t": -k.d_alpha, "d_sigma_t": -k.d_sigma}
        if not isinstance(process, FormulaPath):
            back = process.time_of(2 * (k.alpha / k.sigma).log())
            ours["snr_inverse_of_alpha_over_sigma"] = 1 - back
        for key, value in ours.items():
            finite = theirs[key].isfinite() & value.isfinite()
            pairs.append((value[finite], theirs[key][finite]))
    return pairs


# --- likelihoods -------------------------------------------------------------------------------------------------


@covers("sit", "*sample_ode_likelihood")
@covers("flow_matching", "ODESolver.compute_likelihood")
def likelihood(golden: Golden) -> Pairs:
    """Fixed steps in t, from clean data; their probe is one for the run, or one for each evaluation."""
    given = golden.kwargs
    if golden.program == "sit":
        process, method, grid = path_of(golden), given["sampling_method"], 1 - golden["sched.t_grid"]
        x, shape = golden["in.x0"], golden["in.x0"].shape
    else:
        process, method = scheduler_of(golden), given["method"]
        x = golden["in.x1"]
        shape = (len(x), *golden["gmm.means"].shape[1:])
        count = len(given["time_grid"]) if given.get("step_size") is None else round(1 / given["step_size"]) + 1
        grid = torch.linspace(1, 0, count, dtype=F64)
    method = known({"euler": "euler", "midpoint": "midpoint", "heun2": "heun"}, method, "method of a likelihood")
    if "in.hutchinson_probes" in golden.tensors:
        probes, trace = golden["in.hutchinson_probes"], Hutchinson(fresh=True)
    else:
        probes = [golden["in.hutchinson_probe"].reshape(shape)]
        trace = Exact() if given["exact_divergence"] else Hutchinson()
    found = log_likelihood(
        golden.mixture(process),
        x.reshape(shape),
        labels=golden.labels,
        grid=grid.sort(descending=True).values,
        trace=trace,
        method=method,
        variable=TIME,
        noise_source=RecordedNoise(probe=probes),
    )
    if golden.program == "sit":
        return [(found.latent, golden["out.final"]), (found.log_prob, golden["out.logp"])]
    return [(found.latent.reshape_as(x), golden["out.x_source"]), (found.log_prob, golden["out.log_p"])]
