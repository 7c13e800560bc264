"""Recorded runs from data to noise."""

from __future__ import annotations

import torch
from golden import Golden, Pairs, covers
from torch import Tensor

from dinit.diffusion import Process
from dinit.diffusion.discrete import VPDiscrete
from dinit.samplers import Sampler
from dinit.samplers.grids.respacing import Respaced
from dinit.samplers.grids.timesteps import Timesteps
from dinit.samplers.inversion.invert import DDIMInverse, ascend
from dinit.samplers.ode.ddim import DDIM


def climb(golden: Golden, sampler: Sampler, process: Process, grid: Tensor) -> Tensor:
    """Our states from the grid's last time to its first, the data first."""
    run = ascend(sampler, golden.mixture(process), golden["in.x_init"], grid=grid, labels=golden["in.labels"])
    steps = list(run)
    return torch.stack([steps[0].x_t, *(step.x_s for step in steps)])


def guided_diffusion_reverse(golden: Golden) -> Pairs:
    """Their last step goes to alpha = 0, which lies outside the chain: it leaves the noise that was found last."""
    process = VPDiscrete(golden.kwargs["schedule"], golden.kwargs["T"])
    grid = Respaced(golden.kwargs["respacing"])
    times = grid.times(process, grid.length or 0, process.t_min, 1.0)
    theirs = golden["out.trajectory"]
    pairs = [(climb(golden, sampler, process, times), theirs[:-1]) for sampler in (DDIMInverse(), DDIM())]
    model = golden.mixture(process)
    noise = model(theirs[-2], times[0], model.condition(golden["in.labels"], len(theirs[-2]))).eps
    return [*pairs, (noise, theirs[-1])]


def diffusers_inverse(golden: Golden) -> Pairs:
    """From clean data: their first step is told alpha = 1."""
    config = golden.kwargs["full_config"]
    process = VPDiscrete("linear", config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    times = Timesteps("leading").times(process, golden.kwargs["num_inference_steps"], process.t_min, 1.0)
    times = torch.cat([times, times.new_zeros(1)])
    return [(climb(golden, DDIMInverse(), process, times), golden["out.trajectory"])]


RUNS = {"gd": guided_diffusion_reverse, "df": diffusers_inverse}


@covers("gd_ddim_reverse_*", "df_ddim_inverse")
def inversion(golden: Golden) -> Pairs:
    return RUNS[golden.name.split("_")[0]](golden)
