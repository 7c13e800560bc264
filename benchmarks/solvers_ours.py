"""dinit in benchmarks/solvers.py: its deterministic samplers, their grids, and the searched schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from peer_network import Wanted
from solvers_problems import Problem, start_of
from torch import Tensor

from dinit.diffusion import Process
from dinit.samplers import SAMPLERS, Sampler, TimeGrid
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.grids.uniform import Uniform
from dinit.samplers.multistep.adams import AdamsBashforth, ExponentialAB
from dinit.samplers.multistep.deis import DEIS
from dinit.samplers.multistep.dpm_solver import DPMpp3M
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.multistep.lms import LMS
from dinit.samplers.multistep.rules import Corrector, Extrapolate
from dinit.samplers.multistep.unified import Unified
from dinit.samplers.multistep.unipc import UniPC
from dinit.samplers.points import End, sampling_points
from dinit.samplers.search.solver import SolverSearch


@dataclass(frozen=True)
class Until(TimeGrid):
    """Another grid, that ends where sigma / alpha is `last`, or at t_min where that is later."""

    grid: TimeGrid
    last: float

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        t = float(process.time_of_noise_level(torch.tensor(self.last, dtype=torch.float64)))
        return self.grid.times(process, steps, max(t_min, t), t_max)


GRIDS: dict[str, TimeGrid] = {
    "log-snr": LogSNR(),
    "karras": Karras(),
    "uniform": Uniform(),
    "shifted 1": Shifted(1.0, "t_min"),
    "shifted 2": Shifted(2.0, "t_min"),
    "shifted 3": Shifted(3.0, "t_min"),
    "log-snr to 0.03": Until(LogSNR(), 0.03),
    "log-snr to 0.1": Until(LogSNR(), 0.1),
    "karras to 0.1": Until(Karras(), 0.1),
    "shifted 1 to 0.03": Until(Shifted(1.0, "t_min"), 0.03),
    "shifted 1.4 to 0.03": Until(Shifted(1.4, "t_min"), 0.03),
}
# For paths without signal at t = 1, where diffusers starts a little below.
FROM_BELOW: dict[str, TimeGrid] = {
    "shifted 1 from 0.999": Shifted(1.0, first=0.999),
    "shifted 1 from 1 - 1e-6": Shifted(1.0, first=1 - 1e-6),
    "shifted 1 from 0.999 to t_min": Shifted(1.0, "t_min", 0.999),
    "shifted 1 from 0.999 to 0.03": Until(Shifted(1.0, "t_min", 0.999), 0.03),
    "shifted 3 open": Shifted(3.0),
}
# As textbooks and the peers have them: fewer evaluations at the start, and all of them after steps of any length.
PLAIN: dict[str, Sampler] = {
    **{f"ab {k} {p}": AdamsBashforth(k, p, "lower-order") for k in (2, 3, 4) for p in ("eps", "velocity")},
    **{f"eab {k} {p}": ExponentialAB(k, p, "lower-order", math.inf) for k in (2, 3, 4) for p in ("eps", "x0")},
    **{f"lms {k}": LMS(k, "lower-order") for k in (2, 3, 4)},
    **{f"unipc {k}": UniPC(k, lower_order_final=True, warm_up="lower-order") for k in (2, 3)},
    "dpmpp-3m": DPMpp3M("published", "lower-order", True, math.inf),
    "dpmpp-3m to the end": DPMpp3M("published", "lower-order", False, math.inf),
    "deis log-rho": DEIS(3, "log-rho", warm_up="lower-order", lower_order_final=True),
}
VARIANTS: dict[str, Sampler] = {
    **{f"eab {k} {p}": ExponentialAB(k, p) for k in (2, 3, 4) for p in ("x0", "eps", "v", "velocity")},
    **{f"ab {k} {p}": AdamsBashforth(k, p) for k in (2, 3, 4) for p in ("eps", "v", "velocity")},
    **{f"{n} plain": s for n, s in PLAIN.items()},
    **{f"lms {k}": LMS(k) for k in (2, 3)},
    "deis log-rho": DEIS(3, "log-rho"),
    "unipc 3": UniPC(3),
    "dpmpp-2m heun": DPMpp2M("heun"),
    **{
        f"unified {k} {p}": Unified((Extrapolate(p, k, corrector=Corrector()),))
        for k in (1, 2, 3)
        for p in ("v", "velocity")
    },
}
LEFT_OUT = ("ddim-inverse", "eab", "ab", "unified")  # among VARIANTS in all forms


def solvers() -> dict[str, Sampler]:
    """The registry's deterministic samplers of a fixed cost that need no options, and the variants."""
    found = {}
    for name in SAMPLERS:
        try:
            found[name] = SAMPLERS.create(name)
        except ValueError:  # needs options
            continue
    found = {n: s for n, s in found.items() if n not in LEFT_OUT} | VARIANTS
    return {n: s for n, s in found.items() if not s.stochastic and s.claims().cost_depends_on == "steps"}


def ours(problem: Problem, nfe: int, wanted: Wanted) -> Iterator[tuple[str, str, Tensor]]:
    """(solver, grid, end) of every solver on its grids."""
    for name, sampler in solvers().items():
        wide = name.startswith(("ab ", "eab "))
        for grid, made in grids_for(problem).items():
            for end in ("posterior-mean", "state") if wide else ("posterior-mean",):
                label = f"{grid}{', state' if end == 'state' else ''}"
                if wanted(name, label) and (found := sample(problem, sampler, nfe, made, end)) is not None:
                    yield name, label, found


def grids_for(problem: Problem) -> dict[str, TimeGrid]:
    pure = float(problem.model.process.scales(problem.model.t_max).alpha) == 0
    return GRIDS | (FROM_BELOW if pure else {})


def sample(problem: Problem, sampler: Sampler, nfe: int, grid: TimeGrid | Tensor, end: End) -> Tensor | None:
    """Where a run of nfe evaluations ends; None where there is none.

    end: 'state' is without the last posterior mean; the state is then scaled to alpha = 1, as azula's paths end.
    """
    spare = end == "state"  # the time at which the network is not evaluated
    steps = next((n for n in range(1, nfe + 2) if sampler.nfe(n) - spare == nfe), None)
    if steps is None or (isinstance(grid, Tensor) and len(grid) != steps):
        return None
    try:
        levels = sampling_points(problem.model, steps, grid, end)
        found = sampler.sample(problem.model, problem.noise, steps, grid=grid, end=end)
    except ValueError:  # this sampler refuses this process, or this end
        return None
    return found / levels[-1].floats.alpha if spare else found


def on_levels(problem: Problem, name: str, nfe: int, levels: Sequence[float], denoised: bool) -> Tensor | None:
    """Where a solver leads on the noise levels of a peer's run, which ended with a posterior mean or the state."""
    process = problem.model.process

    def time_of(level: float) -> Tensor:
        if not 0 < level < math.inf:
            return torch.tensor(1.0 if level else 0.0, dtype=torch.float64)
        return process.time_of_noise_level(torch.tensor(level, dtype=torch.float64))

    grid = torch.stack([time_of(level) for level in levels]).clamp(max=problem.model.t_max)
    return sample(problem, solvers()[name], nfe, grid, "posterior-mean" if denoised else "state")


def searched(problem: Problem, nfe: int, search: SolverSearch) -> Tensor:
    """The end of the schedule found on noises (and, of a mixture, labels) that are not the problem's."""
    count = 10240 // nfe if problem.classes else len(problem.start)  # 2,048 noises at 5 evaluations, 512 at 20
    generator = torch.Generator().manual_seed(101)
    labels = torch.randint(problem.classes, (count,), generator=generator) if problem.classes else None
    process = problem.model.process
    noise = start_of(process, (count, *problem.start.shape[1:]), 100) / float(
        process.prior_std(process.scales(1.0))
    )
    model = problem.any_class or problem.model
    found = search.find(model, nfe, noise.to(problem.start.dtype), labels)
    return found.sampler.sample(problem.model, problem.noise, grid=found.grid)
