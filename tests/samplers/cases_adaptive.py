"""Golden runs of adaptive solvers. Their states belong to a controller, so ours are held to the exact solution."""

from __future__ import annotations

import torch
from golden import Golden, Pairs, covers

from dinit.diffusion.continuous import GVP, VE, VP, LinearFlow, SubVP
from dinit.samplers.adaptive import RK45

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
