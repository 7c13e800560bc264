"""Recorded runs of EDM's program and of k-diffusion, which both step in the noise level."""

from __future__ import annotations

import math
import re
from dataclasses import fields, replace
from typing import Any

import torch
from golden import FormulaPath, Golden, Levels, NotCoveredError, Pairs, covers, known, options
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Process, Scales, WrappedDenoiser
from dinit.diffusion.continuous import EDM, VP
from dinit.likelihood.ode import log_likelihood
from dinit.samplers import RecordedNoise, Sampler
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import Exponential, LogSNR, Polyexponential
from dinit.samplers.grids.published import VPInSigma
from dinit.samplers.multistep.dpm_solver import DPMpp2S, DPMSolver1, DPMSolver2, DPMSolver3
from dinit.samplers.multistep.dpmpp import DPMpp2M
from dinit.samplers.multistep.lms import LMS
from dinit.samplers.multistep.unified import Unified
from dinit.samplers.ode.dpm_adaptive import DPMAdaptive
from dinit.samplers.ode.edm import DPM2, EDMEuler, EDMHeun
from dinit.samplers.ode.euler import Euler, Heun
from dinit.samplers.sde.ancestral import Ancestral
from dinit.samplers.sde.dpmpp_sde import DPMpp2MSDE, DPMpp3MSDE, DPMppSDE

F64 = torch.float64


def churn(given: dict[str, Any]) -> dict[str, Any]:
    """Their names for the settings of churn, read as ours."""
    ours = {"S_churn": "s_churn", "S_min": "s_tmin", "S_max": "s_tmax", "S_noise": "s_noise"}
    ours |= {name: name for name in ours.values()}
    read = {ours[k]: float(v) for k, v in given.items() if k in ours and v is not None}
    return read if read.get("s_churn") else {}  # without churn the others do nothing


def churned_run(golden: Golden, sampler: Sampler, process: EDM, times: Tensor, start: Tensor) -> Tensor:
    """A run whose first and last steps may have churn: above the first level, and before the one to sigma = 0.

    Ours raises no level above the process's highest, and the posterior mean at the end has no churn.
    """
    room = 1.5
    wide = EDM(process.sigma_min, room * process.sigma_max)
    grid = torch.cat([times / room, times.new_zeros(1)])
    return golden.run(sampler, wide, grid, initial_state=start, end="state")


# --- EDM ---------------------------------------------------------------------------------------------------------


@covers("edm", "edm_sampler")
def edm(golden: Golden) -> Pairs:
    given = {"num_steps": 18, "rho": 7, "sigma_min": 0.002, "sigma_max": 80, **golden.kwargs}
    process = EDM(float(given["sigma_min"]), float(given["sigma_max"]))
    times = Karras(given["rho"]).times(process, given["num_steps"], process.t_min, 1.0)
    pairs = [(times * process.sigma_max, golden["sched.t_steps"][:-1])]
    churned, start = EDMHeun(**churn(given)), golden["in.latents"] * process.sigma_max
    pairs.append((churned_run(golden, churned, process, times, start), golden.trajectory))
    if not churned.s_churn:
        pairs.append((golden.run(Heun(), process, times, initial_state=start), golden.trajectory))
    return pairs


class Ablation:
    """The general sampler of EDM's paper: its levels, its schedule sigma(t) and its scaling s(t)."""

    def __init__(self, given: dict[str, Any]) -> None:
        kind = given.get("discretization") or "edm"
        self.given, self.kind = given, kind
        self.schedule, self.scaling = given.get("schedule") or "linear", given.get("scaling") or "none"
        self.eps = given.get("epsilon_s", 1e-3)
        low = {"vp": self.vp_sigma(19.9, 0.1, self.eps), "ve": 0.02}.get(kind, 0.002)
        high = {"vp": self.vp_sigma(19.9, 0.1, 1.0), "ve": 100.0, "iddpm": 81.0}.get(kind, 80.0)
        self.low, self.high = given.get("sigma_min") or low, given.get("sigma_max") or high
        ends = [math.log(v**2 + 1) for v in (self.low, self.high)]
        self.beta_d = 2 * (ends[0] / self.eps - ends[1]) / (self.eps - 1)
        self.beta_min = ends[1] - self.beta_d / 2

    @staticmethod
    def vp_sigma(beta_d: float, beta_min: float, t: float) -> float:
        return math.sqrt(math.expm1(beta_d * t**2 / 2 + beta_min * t))

    def levels(self) -> Tensor:
        """The noise levels of the steps, without the final 0."""
        n = self.given.get("num_steps", 18)
        u = torch.linspace(0, 1, n, dtype=F64)
        if self.kind == "vp":
            times = 1 + u * (self.eps - 1)
            return torch.tensor([self.vp_sigma(self.beta_d, self.beta_min, float(t)) for t in times], dtype=F64)
        if self.kind == "ve":
            return self.high * (self.low / self.high) ** u
        if self.kind == "iddpm":
            return self._iddpm(n)
        rho = self.given.get("rho", 7)
        return (self.high ** (1 / rho) + u * (self.low ** (1 / rho) - self.high ** (1 / rho))) ** rho

    def _iddpm(self, n: int) -> Tensor:
        m, floor, shift = (self.given.get(k, v) for k, v in (("M", 1000), ("C_1", 1e-3), ("C_2", 8e-3)))
        alpha_bar = [math.sin(math.pi / 2 * j / m / (shift + 1)) ** 2 for j in range(m + 1)]
        table = [0.0]
        for j in range(m, 0, -1):
            ratio = max(alpha_bar[j - 1] / alpha_bar[j], floor)
            table.insert(0, math.sqrt((table[0] ** 2 + 1) / ratio - 1))
        kept = [v for v in table if self.low <= v <= self.high]
        return torch.tensor([kept[round((len(kept) - 1) / (n - 1) * i)] for i in range(n)], dtype=F64)

    def time(self, sigma: Tensor) -> Tensor:
        """The schedule's own time of a level."""
        if self.schedule == "vp":
            log = torch.log1p(sigma**2)
            return ((self.beta_min**2 + 2 * self.beta_d * log).sqrt() - self.beta_min) / self.beta_d
        return sigma**2 if self.schedule == "ve" else sigma

    def scales(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """s and s sigma at the schedule's own time."""
        if self.schedule == "vp":
            sigma = torch.expm1(self.beta_d * t**2 / 2 + self.beta_min * t).sqrt()
        else:
            sigma = t.sqrt() if self.schedule == "ve" else t
        alpha = (1 + sigma**2).rsqrt() if self.scaling == "vp" else torch.ones_like(t)
        return alpha, alpha * sigma


def recorded_levels(golden: Golden, general: Ablation) -> Tensor:
    """iDDPM's levels as the network saw them at the start of each step: the program makes that table in float32."""
    seen, settings = golden["sched.model_sigma"], {"s_tmin": 0.0, "s_tmax": math.inf, **churn(golden.kwargs)}
    seen = seen if golden.kwargs.get("solver") == "euler" else seen[::2]
    ours = general.levels()
    churned = (ours >= settings["s_tmin"]) & (ours <= settings["s_tmax"])
    seen = seen / (1 + churned.double() * min(settings.get("s_churn", 0.0) / len(ours), math.sqrt(2) - 1))
    torch.testing.assert_close(seen, ours, rtol=2e-3, atol=0)
    return seen


def ablation_tolerance(golden: Golden) -> float:
    """Their noise without churn is the square root of a rounding error, where sigma(t) has to be inverted."""
    return 1e-10 if golden.kwargs.get("schedule", "linear") == "linear" else 1e-6


@covers("edm", "ablation_sampler", tolerance=ablation_tolerance)
def edm_ablation(golden: Golden) -> Pairs:
    """Churn, then a step that is even in the schedule's own time, which is scaled to [0, 1] with room for churn."""
    given = golden.kwargs
    general = Ablation(given)
    times = general.time(recorded_levels(golden, general) if general.kind == "iddpm" else general.levels())
    top = float(general.time(1.5 * general.levels()[:1]))
    path = FormulaPath(lambda t: general.scales(t * top), lambda level: general.time(level) / top)
    if general.schedule == general.scaling == "vp" and general.beta_min > 0:
        ends = general.beta_min * top, (general.beta_min + general.beta_d * top) * top
        process: Process = VP(*ends)  # dinit's path, with its time scaled
    elif general.schedule == "linear" and general.scaling == "none":
        process = EDM(top / 1e5, top)
    else:
        process = path
    heun = EDMHeun(**churn(given), alpha=given.get("alpha", 1.0), variable="t")
    sampler: Sampler = heun
    if given.get("solver") == "euler":
        if heun.s_churn:
            raise NotCoveredError("Euler's step after churn, in a schedule's own time")
        sampler = Euler()
    grid = torch.cat([times / top, times.new_zeros(1)])
    start = golden["in.latents"] * process.scales(grid[0]).sigma
    return [(golden.run(sampler, process, grid, initial_state=start, end="state"), golden.trajectory)]


# --- k-diffusion -------------------------------------------------------------------------------------------------

ANCESTRAL: dict[str, Sampler] = {
    "sample_euler_ancestral": Ancestral(),
    "sample_dpm_2_ancestral": Ancestral(solver="dpm-2"),
    "sample_dpmpp_2s_ancestral": Ancestral(solver="dpmpp-2s"),
    "sample_dpmpp_sde": DPMppSDE(),
    "sample_dpmpp_2m_sde": DPMpp2MSDE(),
    "sample_dpmpp_3m_sde": DPMpp3MSDE(curvature="published", max_step_ratio=math.inf),
}
CHURNED: dict[str, tuple[Any, tuple[Sampler, ...]]] = {  # and what they are without churn
    "sample_euler": (EDMEuler, (Euler(),)),
    "sample_heun": (EDMHeun, (Heun(),)),
    "sample_dpm_2": (DPM2, (DPMSolver2(),)),
}


def grid_named(kind: str, given: dict[str, Any]) -> TimeGrid | None:
    """dinit's grid of this name; None for a table of no formula of ours."""
    makers: dict[str, Any] = {
        "karras": (Karras, ("rho",)),
        "exponential": (LogSNR, ()),
        "polyexponential": (Polyexponential, ("rho",)),
        "vp": (VPInSigma, ("beta_d", "beta_min", "eps_s")),
    }
    if kind not in makers:
        return None
    make, names = makers[kind]
    found = options(given, names)
    if kind == "polyexponential":
        found.setdefault("rho", 1.0)  # the program's default, which is not ours
    if "eps_s" in found:
        found["eps"] = found.pop("eps_s")
    return make(**found)


def levels_of(golden: Golden) -> tuple[EDM, Tensor, Pairs]:
    """The process, our times and, where dinit has the grid, its levels against the recorded ones."""
    sigmas = golden["sched.sigmas"]
    levels = sigmas[sigmas > 0]
    kind, given = golden.kwargs["sigmas"] or ("", {})
    process = EDM(float(given.get("sigma_min", levels[-1])), float(given.get("sigma_max", levels[0])))
    grid = grid_named(kind, given)
    if grid is None:
        return process, levels / process.sigma_max, []
    times = grid.times(process, given["n"], process.t_min, 1.0)
    return process, times, [(times * process.sigma_max, levels)]


def end_of(golden: Golden) -> str:
    return "posterior-mean" if golden["sched.sigmas"][-1] == 0 else "state"


@covers("k-diffusion", *ANCESTRAL)
def k_stochastic(golden: Golden) -> Pairs:
    process, times, pairs = levels_of(golden)
    given = {key: value for key, value in golden.kwargs.items() if key != "sigmas"}
    if "solver_type" in given:
        given["variant"] = given.pop("solver_type")
    if given.pop("r", 0.5) != 0.5:
        raise NotCoveredError("another midpoint r than 1/2")
    base = ANCESTRAL[golden.said("function")]
    unknown = set(given) - {field.name for field in fields(base)}  # type: ignore[arg-type]
    if unknown:
        raise NotCoveredError(f"settings that dinit's {type(base).__name__} has not: {', '.join(sorted(unknown))}")
    samplers = [replace(base, **given)]  # type: ignore[type-var]
    if given.get("eta") == 0 and golden.said("function") == "sample_dpmpp_2s_ancestral":
        samplers.append(DPMpp2S())
    end = end_of(golden)
    return [*pairs, *((golden.run(s, process, times, end=end), golden.trajectory) for s in samplers)]


@covers("k-diffusion", *CHURNED)
def k_churned(golden: Golden) -> Pairs:
    """Their states are recorded after the churn."""
    make, plain = CHURNED[golden.said("function")]
    process, times, pairs = levels_of(golden)
    sampler = make(**churn(golden.kwargs))
    for ours in (sampler, *(() if sampler.s_churn else plain)):
        if ours.stochastic and end_of(golden) == "posterior-mean":
            states = churned_run(golden, ours, process, times, golden["in.x_init"])
        else:
            states = golden.run(ours, process, times, end=end_of(golden))
        if sampler.s_churn:
            before, after = golden["sched.callback_sigma"], golden["sched.callback_sigma_hat"]
            added = sampler.s_noise * (after**2 - before**2).clamp(min=0).sqrt()
            noise = golden["in.noise"]
            states[:-1] += added.reshape(-1, *(1,) * (noise.ndim - 1)) * noise
        pairs.append((states, golden.trajectory))
    return pairs


@covers("k-diffusion", "sample_dpmpp_2m")
def k_dpmpp_2m(golden: Golden) -> Pairs:
    process, times, pairs = levels_of(golden)
    return [*pairs, (golden.run(DPMpp2M(), process, times, end=end_of(golden)), golden.trajectory)]


@covers("k-diffusion", "sample_lms")
def k_lms(golden: Golden) -> Pairs:
    """In x = x0 + sigma eps, down to sigma = 0 with all evaluations."""
    sigmas = golden["sched.sigmas"]
    path = Levels(torch.linspace(1, 0, len(sigmas), dtype=F64), torch.ones_like(sigmas), sigmas)
    sampler = LMS(golden.kwargs.get("order", 4), "lower-order")
    return [*levels_of(golden)[2], (golden.run(sampler, path, path.t, end="state"), golden.trajectory)]


@covers("k-diffusion", "sample_dpm_fast")
def k_dpm_fast(golden: Golden) -> Pairs:
    """DPM-Solver-fast: steps of order 3, and 2 or 1 at the end, as the evaluations allow. Lu et al. 2022."""
    given = golden.kwargs
    if given.get("eta"):
        raise NotCoveredError("DPM-Solver-fast with noise")
    process, count = EDM(given["sigma_min"], given["sigma_max"]), given["n"]
    orders = [3] * (count // 3 - 1) + [2, 1] if count % 3 == 0 else [3] * (count // 3) + [count % 3]
    single = {1: DPMSolver1.rule, 2: DPMSolver2.rule, 3: DPMSolver3.rule}
    times = LogSNR().times(process, len(orders) + 1, process.t_min, 1.0)
    sampler = Unified(tuple(single[order] for order in orders), "lower-order")
    return [(golden.run(sampler, process, times, end="state"), golden.trajectory)]


class AsOne(WrappedDenoiser):
    """A batch as one sample, its images among the channels: the controller then sees them together, as theirs."""

    def __init__(self, inner: Denoiser, labels: Tensor | None, batch: int) -> None:
        super().__init__(inner)
        self.cond = inner.condition(labels, batch)
        self.asked: list[float] = []

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        k = self.scales(t).map(lambda v: v.reshape(()))
        self.asked.append(k.floats.sigma)
        x = x_t.reshape(self.cond.batch, -1, *x_t.shape[2:])
        return Denoised(x_t, self.inner(x, k, self.cond).x0.reshape(x_t.shape), k)


@covers("k-diffusion", "sample_dpm_adaptive", tolerance=1e-8)
def k_dpm_adaptive(golden: Golden) -> Pairs:
    """They ask again for the start of a step after a rejected one; we remember it."""
    given = golden.kwargs
    if given.get("eta"):
        raise NotCoveredError("the adaptive DPM-Solver with noise")
    process = EDM(given["sigma_min"], given["sigma_max"])
    x_init = golden["in.x_init"]
    model = AsOne(golden.mixture(process), golden.labels, len(x_init))
    theirs = {"rtol": 0.05, "atol": 0.0078, "h_init": 0.05, "pcoeff": 0.0, "icoeff": 1.0, "dcoeff": 0.0}
    theirs |= {"accept_safety": 0.81}
    sampler = DPMAdaptive(
        known({3: 23, 2: 12}, given.get("order", 3), "order"),
        *(float(given.get(name, value)) for name, value in theirs.items()),
    )
    times = torch.tensor([1.0, process.t_min], dtype=F64)
    x = x_init.reshape(1, -1, *x_init.shape[2:])
    ours = sampler.sample(model, x, grid=times, initial_state=x, end="state").reshape_as(x_init)
    levels = golden["sched.model_sigma"]
    new = torch.tensor([i for i, v in enumerate(levels.tolist()) if v not in levels[:i].tolist()])
    return [(ours, golden["out.final"]), (torch.tensor(model.asked, dtype=F64), levels[new])]


# k-diffusion's own error at tolerance 1e-8, which it sets for a whole batch, is 2e-6 nats.
@covers("k-diffusion", "log_likelihood", tolerance=1e-6)
def k_likelihood(golden: Golden) -> Pairs:
    """Their run at tolerance 1e-8 against many fixed steps of ours."""
    given = golden.kwargs
    found = log_likelihood(
        golden.mixture(EDM(given["sigma_min"], given["sigma_max"])),
        golden["in.x0"],
        300,
        labels=golden.labels,
        prior="standard",
        noise_source=RecordedNoise(probe=[golden["in.hutchinson_probe"]]),
    )
    return [(found.log_prob, golden["out.ll_tight"])]


@covers("k-diffusion", "get_sigmas_*")
def k_schedules(golden: Golden) -> Pairs:
    """Keys are `<schedule>/n<steps>` and `<schedule>_rho<number>/n<steps>`, under `sched.`."""
    pairs = []
    for key, theirs in golden.under("sched.").items():
        named = re.fullmatch(r"([a-z]+)(?:_rho([\d.]+))?/n(\d+)", key)
        if not named:
            continue
        rho = {} if named[2] is None else {"rho": float(named[2])}
        grid = Exponential() if named[1] == "exponential" else grid_named(named[1], rho)
        if grid is not None:
            process = EDM(float(theirs[-2]), float(theirs[0]))
            times = grid.times(process, int(named[3]), process.t_min, 1.0)
            pairs.append((times * process.sigma_max, theirs[:-1]))
    return pairs
