"""The peers of benchmarks/solvers.py: diffusers' schedulers, each run by its own loop on a denoiser of dinit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import dinit.models  # noqa: F401  (makes diffusers importable beside a torchvision whose operators do not load)
from dinit.diffusion import Denoiser, Process, Scales

F64 = torch.float64


def peers(path: str, model: Denoiser, x: Tensor, nfe: int) -> Iterator[tuple[str, str, Tensor]]:
    """(scheduler, grid, end) of diffusers' schedulers, each with its own spacings, sigmas and shifts."""
    import diffusers

    linear = {"beta_start": 1e-4, "beta_end": 0.02}
    sigmas = [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}]
    grids = [{"timestep_spacing": spacing, **s} for spacing in ("linspace", "trailing") for s in sigmas]
    spacings = [{"timestep_spacing": spacing} for spacing in ("linspace", "trailing")]
    multistep = [
        ("DPMSolverMultistep 2M", "DPMSolverMultistepScheduler", {"solver_order": 2}),
        ("DPMSolverMultistep 3M", "DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("UniPC 2", "UniPCMultistepScheduler", {"solver_order": 2}),
        ("UniPC 3", "UniPCMultistepScheduler", {"solver_order": 3}),
        ("DEIS 3", "DEISMultistepScheduler", {"solver_order": 3}),
    ]
    if path == "vp_linear":
        others = [(n, f"{n}Scheduler", {}) for n in ("EulerDiscrete", "HeunDiscrete", "LMSDiscrete")]
        cases = [(*case, grids) for case in multistep + others]
        cases += [(n, f"{n}Scheduler", {"set_alpha_to_one": True}, spacings) for n in ("DDIM", "PNDM")]
    elif path == "flow_linear":
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        shifts = [{"flow_shift": shift} for shift in (1.0, 2.0, 3.0, 5.0)]
        cases = [(name, cls, {**given, **flow}, shifts) for name, cls, given in multistep]
        names = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")
        cases += [(n, f"{n}Scheduler", {}, [{"shift": shift} for shift in (1.0, 2.0, 3.0, 5.0)]) for n in names]
        linear = {}
    else:
        schedules = [{"sigma_schedule": schedule} for schedule in ("karras", "exponential")]
        cases = [("EDMEuler", "EDMEulerScheduler", {}, schedules)]
        cases += [(f"EDMDPMSolverMultistep {k}M", "EDMDPMSolverMultistepScheduler", {"solver_order": k}, schedules)
                  for k in (2, 3)]  # fmt: skip
        linear = {}
    for name, cls, given, options in cases:
        for option in options:
            for steps in dict.fromkeys((nfe, nfe - 1, (nfe + 1) // 2)):
                try:
                    scheduler = getattr(diffusers, cls)(**{**linear, **given, **option})
                    end, calls = run_peer(scheduler, path, model, x, steps)
                except (ValueError, IndexError, TypeError, AssertionError, RuntimeError):
                    continue  # an option that this scheduler does not have, or does not run with
                if calls == nfe:
                    yield name, " ".join(map(str, option.values())), end
                    break  # the other counts of steps belong to solvers of two evaluations a step


@torch.no_grad()
def run_peer(scheduler: Any, path: str, model: Denoiser, x: Tensor, steps: int) -> tuple[Tensor, int]:
    """(end, evaluations) of a scheduler's own loop from the state x at the noisiest level."""
    scheduler.set_timesteps(steps)
    name, cond, calls = type(scheduler).__name__, model.condition(None, len(x)), 0
    in_sigma = name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
    first = float(getattr(scheduler, "sigmas", [0.0])[0])
    state = x * math.sqrt(1 + first**2) if in_sigma else x * (first / 80 if path == "edm80" else 1)
    for i, t in enumerate(scheduler.timesteps):
        alpha, sigma = scales_of(scheduler, path, i, int(t))
        at = level_of(model.process, alpha, sigma)
        d = model(state * alpha if in_sigma else state, at, cond)
        out = {"vp_linear": d.eps, "flow_linear": d.eps - d.x0, "edm80": None}[path]
        if out is None:
            level = scheduler.sigmas[i].double()
            data = scheduler.config.sigma_data
            skip, scale = data**2 / (level**2 + data**2), level * data / (level**2 + data**2).sqrt()
            out = (d.x0 - skip * state) / scale
        if in_sigma or "EDMEuler" in name:
            scheduler.scale_model_input(state, t)
        state = scheduler.step(out, t, state).prev_sample.to(x.dtype)
        calls += 1
    return state, calls


def level_of(process: Process, alpha: float, sigma: float) -> Scales:
    """The scales at which the denoiser is asked: the peer's own alpha and sigma, and the time of their ratio."""
    given = [torch.tensor(v, dtype=F64) for v in (alpha, sigma)]
    t = process.time_of_noise_level(given[1] / given[0]) if alpha else torch.tensor(1.0, dtype=F64)
    return Scales(t, *given, *2 * [torch.tensor(0.0, dtype=F64)])


def scales_of(scheduler: Any, path: str, i: int, t: int) -> tuple[float, float]:
    """(alpha, sigma) of the scheduler's i-th evaluation, from its own table."""
    if not hasattr(scheduler, "sigmas"):
        alpha_bar = float(scheduler.alphas_cumprod[t].double())
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    level = float(scheduler.sigmas[i].double())
    if path == "edm80":
        return 1.0, level
    return (1 - level, level) if path == "flow_linear" else (1 / math.hypot(1, level), level / math.hypot(1, level))
