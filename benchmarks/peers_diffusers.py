"""diffusers' schedulers on a denoiser of dinit, each by its own loop, with its own spacings, sigmas and shifts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from peer_network import Network, Run, Wanted, prepare
from torch import Tensor

import dinit.models  # noqa: F401  (makes diffusers importable with a torchvision whose operators do not load)
from dinit.diffusion import Denoiser, Process
from dinit.diffusion.continuous import EDM, LinearFlow

Options = dict[str, Any]
IN_SIGMA = ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler")
REFUSED = (ValueError, IndexError, TypeError, AssertionError, RuntimeError)
SIGMAS: list[Options] = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_lu_lambdas": True},
]
MULTISTEP: list[tuple[str, Options]] = [
    *(("DPMSolverMultistep", {"solver_order": k}) for k in (2, 3)),
    *(("UniPCMultistep", {"solver_order": k}) for k in (2, 3)),
    ("DEISMultistep", {"solver_order": 3}),
]
VARIANTS: dict[str, list[Options]] = {
    "DPMSolverMultistep": [
        {},
        {"solver_type": "heun"},
        {"lower_order_final": False},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
    ],
    "UniPCMultistep": [{}, {"lower_order_final": False}, {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}],
    "DEISMultistep": [{}, {"lower_order_final": False}],
}


def cases(process: Process) -> Iterator[tuple[str, str, Options, list[Options]]]:
    """(name, class, its options, those of which one after the other is tried), as fit the process."""
    if isinstance(process, LinearFlow):
        shifts = [1.0, 2.0, 3.0, 5.0]
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        for name, order in MULTISTEP:
            tried = [{"flow_shift": s, **v} for s in shifts for v in VARIANTS[name]]
            yield named(name, order), f"{name}Scheduler", {**order, **flow}, tried
        for name in ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"):
            yield name, f"{name}Scheduler", {}, [{"shift": s, **v} for s in shifts for v in SIGMAS[:4]]
    elif isinstance(process, EDM):
        ends = {
            key: float(process.scales(t).sigma) for key, t in (("sigma_min", process.t_min), ("sigma_max", 1.0))
        }
        schedules = [{"sigma_schedule": schedule} for schedule in ("karras", "exponential")]
        yield "EDMEuler", "EDMEulerScheduler", ends, schedules
        for order in (2, 3):
            tried = [{**s, **v} for s in schedules for v in VARIANTS["DPMSolverMultistep"][:3]]
            yield (
                f"EDMDPMSolverMultistep {order}M",
                "EDMDPMSolverMultistepScheduler",
                {**ends, "solver_order": order},
                tried,
            )
    else:
        betas = {"trained_betas": betas_of(process)}
        spacings = [{"timestep_spacing": spacing} for spacing in ("linspace", "trailing", "leading")]
        grids = [{**spacing, **s} for spacing in spacings[:2] for s in SIGMAS] + spacings[2:]
        for name, order in MULTISTEP:
            tried = [{**g, **v} for g in grids for v in VARIANTS[name]]
            yield named(name, order), f"{name}Scheduler", {**order, **betas}, tried
        for name in ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete", "KDPM2Discrete"):
            yield name, f"{name}Scheduler", betas, grids
        for name in ("DDIM", "PNDM"):
            yield name, f"{name}Scheduler", {"set_alpha_to_one": True, **betas}, spacings


def named(name: str, order: Options) -> str:
    k = order["solver_order"]
    return f"{name} {k}M" if name == "DPMSolverMultistep" else f"{name.removesuffix('Multistep')} {k}"


def noisiest(process: Process) -> float:
    """sigma at t = 1."""
    return float(process.scales(1.0).sigma)


def betas_of(process: Process, levels: int = 1000) -> list[float]:
    """The chain whose timestep i is t = (i + 1) / levels of the process."""
    alphas = process.scales(torch.arange(levels + 1, dtype=torch.float64) / levels).alpha
    return (1 - (alphas[1:] / alphas[:-1]) ** 2).tolist()


def peers(model: Denoiser, x: Tensor, nfe: int, wanted: Wanted) -> Iterator[Run]:
    """Runs of nfe evaluations of the schedulers. Options that one does not have are left out."""
    import diffusers

    for name, cls, given, tried in cases(model.process):
        for option in tried:
            if not wanted(f"diffusers {variant(name, option)}", " ".join(words(option))):
                continue
            for steps in dict.fromkeys((nfe, nfe - 1, (nfe + 1) // 2)):
                try:
                    scheduler = getattr(diffusers, cls)(**{**given, **option})
                    if unknown := set(option) - set(scheduler.config):
                        raise ValueError(unknown)
                    done = run(scheduler, name, option, model, x, steps, nfe)
                except REFUSED:
                    continue
                if done:
                    yield done
                    break  # the other counts of steps belong to solvers of two evaluations a step


@torch.no_grad()
def run(scheduler: Any, name: str, option: Options, model: Denoiser, x: Tensor, steps: int, nfe: int) -> Run | None:
    """A scheduler's own loop from the state x at t = 1; None where it takes another number of evaluations."""
    scheduler.set_timesteps(steps)
    if len(scheduler.timesteps) != nfe:
        return None
    cls, network, edm = type(scheduler).__name__, Network(model, len(x)), isinstance(model.process, EDM)
    in_sigma, flow = cls in IN_SIGMA, isinstance(model.process, LinearFlow)
    first = float(getattr(scheduler, "sigmas", [0.0])[0])
    state = x * math.sqrt(1 + first**2) if in_sigma else x * (first / noisiest(model.process) if edm else 1)
    if hasattr(scheduler, "sigmas"):
        sigmas = scheduler.sigmas.double()
        prepare(model.process, sigmas / (1 - sigmas) if flow else sigmas)
    levels = []
    for i, t in enumerate(scheduler.timesteps):
        alpha, sigma = scales_of(scheduler, i, int(t), in_sigma or edm, flow)
        levels.append(sigma / alpha if alpha else math.inf)
        x0 = network(state, alpha, sigma)
        eps = (state - alpha * x0) / sigma
        out = preconditioned(scheduler, state, x0, sigma) if edm else (eps - x0 if flow else eps)
        if in_sigma or "EDMEuler" in cls:
            scheduler.scale_model_input(state, t)
        state = scheduler.step(out, t, state).prev_sample.to(x.dtype)
    assert network.calls == nfe, (name, network.calls, nfe)
    last = float(scheduler.sigmas[-1].double()) if hasattr(scheduler, "sigmas") else 0.0
    closed = not last and cls != "LMSDiscreteScheduler"  # LMS extrapolates over the last step as well
    if not closed:
        levels.append(last / (1 - last) if flow else last)
    # Heun's evaluates twice at a noise level; KDPM2 between two of them, and PNDM twice at the second.
    ends = [] if cls in ("KDPM2DiscreteScheduler", "PNDMScheduler") else dict.fromkeys(levels)
    return Run("diffusers", variant(name, option), " ".join(words(option)), state, tuple(ends), closed)


def variant(name: str, option: Options) -> str:
    """The name of what is another solver, not the same on another grid."""
    kinds = {"heun": " heun", "dpmsolver": " noise", "bh1": " bh1"}
    return name + "".join(kinds.get(str(option.get(key)), "") for key in ("solver_type", "algorithm_type"))


def words(option: Options) -> Iterator[str]:
    """The options, without what repeats."""
    for key, value in option.items():
        short = key.removeprefix("use_").removesuffix("_sigmas").replace("_lambdas", "")
        yield short if value is True else f"no {short}" if value is False else str(value)


def preconditioned(scheduler: Any, state: Tensor, x0: Tensor, sigma: float) -> Tensor:
    """The network's output that EDM's schedulers turn into x0. Karras et al. 2022, Table 1."""
    data = scheduler.config.sigma_data
    skip, scale = data**2 / (sigma**2 + data**2), sigma * data / math.hypot(sigma, data)
    return (x0 - skip * state) / scale


def scales_of(scheduler: Any, i: int, t: int, in_sigma: bool, flow: bool) -> tuple[float, float]:
    """(alpha, sigma) of the state at the scheduler's i-th evaluation, from its own table."""
    if not hasattr(scheduler, "sigmas"):
        alpha_bar = float(scheduler.alphas_cumprod[t].double())
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    level = float(scheduler.sigmas[i].double())
    if in_sigma:
        return 1.0, level
    return (1 - level, level) if flow else (1 / math.hypot(1, level), level / math.hypot(1, level))
