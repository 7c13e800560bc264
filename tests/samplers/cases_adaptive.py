"""Golden runs of adaptive solvers. RK45's states belong to a controller, and are held to the exact solution."""

from __future__ import annotations

import torch
from golden import Golden, Pairs, covers
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales, WrappedDenoiser
from dinit.diffusion.continuous import EDM, GVP, VE, VP, LinearFlow, SubVP
from dinit.samplers.ode.dpm_adaptive import DPMAdaptive
from dinit.samplers.ode.rk45 import RK45

PATHS = {"Linear": LinearFlow(), "GVP": GVP(), "VP": VP(), "CondOTScheduler": LinearFlow()}
PATHS |= {"vp": VP(), "subvp": SubVP(), "ve": VE()}


@covers("sde_ode_*_rk45*", "fm_dopri5_*", tolerance=1e-4)
@covers("sit_ode_*_dopri5", tolerance=1e-2)  # rtol is 1e-3
@covers("sit_ode_*_dopri5_tight", tolerance=1e-7)
def adaptive(golden: Golden) -> Pairs:
    given = golden.kwargs
    process = PATHS[given.get("path_type") or given.get("scheduler") or given["sde"]]
    if "sde" in given:
        times, exact = torch.tensor([1.0, given["eps"]], dtype=torch.float64), "out.exact_at_eps"
    else:
        wanted = golden["sched.t_grid"] if "path_type" in given else torch.tensor(given["time_grid"])
        times, exact = 1 - wanted.double(), "out.exact_at_t1" if "path_type" in given else "out.exact_at_end"
    ours = golden.run(RK45(given["rtol"], given["atol"]), process, times, end="state")
    return [(ours[-1], golden[exact])]


class AsOne(WrappedDenoiser):
    """A batch as one sample, its images among the channels: the controller then sees them together, as theirs."""

    def __init__(self, inner: Denoiser, labels: Tensor) -> None:
        super().__init__(inner)
        self.cond = inner.condition(labels, len(labels))
        self.asked: list[float] = []

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        k = self.scales(t).map(lambda v: v.reshape(()))
        self.asked.append(k.floats.sigma)
        x = x_t.reshape(self.cond.batch, -1, *x_t.shape[2:])
        return Denoised(x_t, self.inner(x, k, self.cond).x0.reshape(x_t.shape), k)


@covers("k_dpm_adaptive*", tolerance=1e-8)
def k_dpm_adaptive(golden: Golden) -> Pairs:
    """They ask again for the start of a step after a rejected one; we remember it."""
    given = golden.kwargs
    process = EDM(given["sigma_min"], given["sigma_max"])
    model = AsOne(golden.mixture(process), golden["in.labels"])
    sampler = DPMAdaptive(
        23 if given.get("order", 3) == 3 else 12, given.get("rtol", 0.05), given.get("atol", 0.0078)
    )
    times = torch.tensor([1.0, process.t_min], dtype=torch.float64)
    x = golden["in.x_init"].reshape(1, -1, *golden["in.x_init"].shape[2:])
    ours = sampler.sample(model, x, grid=times, initial_state=x, end="state").reshape_as(golden["out.final"])
    theirs = golden["sched.model_sigma"]
    new = torch.tensor([i for i, v in enumerate(theirs.tolist()) if v not in theirs[:i].tolist()])
    return [(ours, golden["out.final"]), (torch.tensor(model.asked, dtype=torch.float64), theirs[new])]
