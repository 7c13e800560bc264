"""Error of every deterministic sampler at few network evaluations, beside diffusers' schedulers, on one denoiser.

The data are a mixture of Gaussians, so the denoiser is exact and so is the end of the probability-flow ODE: what
is left is the solver's own error. Every sampler of the registry runs as it comes on three grids, and every peer on
its own; the best grid of each is shown, as RMS over samples and pixels, with the same number of evaluations. The
start is the same state. Run: python benchmarks/few_step_accuracy.py [--problem FILE]

--problem: a safetensors file with gmm.NAME.{means,var,weights}, in.z and out.NAME.{vp_linear,edm80,flow_linear}.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import dinit.models  # noqa: F401  (makes diffusers importable beside a torchvision whose operators do not load)
from dinit.diffusion import Process, Scales
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import SAMPLERS, Sampler
from dinit.samplers.adams import AdamsBashforth, ExponentialAB
from dinit.samplers.deis import DEIS
from dinit.samplers.unified import Rule, Unified
from dinit.samplers.unipc import UniPC

NFES = (5, 8, 10, 12, 15, 20)
GRIDS = ("log-snr", "karras", "uniform")
PATHS: dict[str, Process] = {
    "vp_linear": VPDiscrete("linear"),
    "edm80": EDM(0.002, 80.0),
    "flow_linear": LinearFlow(),
}
VARIANTS: dict[str, Sampler] = {
    **{f"eab {k} {p}": ExponentialAB(k, p) for k in (3, 4) for p in ("eps", "v", "velocity")},
    "deis log-rho": DEIS(3, "log-rho"),
    "unipc 3": UniPC(3),
    **{f"ab {k} {p}": AdamsBashforth(k, p) for k in (3, 4) for p in ("v", "velocity")},
    **{f"unified {k} {p}": Unified((Rule(p, k, True),)) for k in (1, 2, 3) for p in ("v", "velocity")},
}
RESULTS = Path(__file__).parent / "results" / "few_step_accuracy.md"
F64 = torch.float64


def made_up_problem() -> dict[str, Tensor]:
    """A mixture of five components in (2, 4, 4), and 64 noises."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)  # noqa: E731
    return {
        "gmm.mixture.means": 0.5 * draw(5, 2, 4, 4),
        "gmm.mixture.var": 0.02 + 0.1 * draw(5, 2, 4, 4).square(),
        "gmm.mixture.weights": torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3], dtype=F64),
        "in.z": draw(64, 2, 4, 4),
    }


def exact_end(model: MixtureDenoiser, x: Tensor, start: Scales) -> Tensor:
    """The ODE's end from x at `start`: DOP853 on the straight path, onto which every path is scaled."""
    from scipy.integrate import solve_ivp

    straight = MixtureDenoiser(LinearFlow(), model.means, model.variances, model.weights)
    cond = straight.condition(None, len(x))
    scale = float(start.alpha + start.sigma)
    shape, begin, end = x.shape, float(start.sigma) / scale, 1e-6

    def slope(t: float, y: Any) -> Any:
        return straight(torch.as_tensor(y).reshape(shape), t, cond).velocity.flatten().numpy()

    found = solve_ivp(slope, (begin, end), (x / scale).flatten().numpy(), "DOP853", rtol=1e-10, atol=1e-10)
    return straight(torch.as_tensor(found.y[:, -1]).reshape(shape), end, cond).x0


def ours(model: MixtureDenoiser, x: Tensor, nfe: int) -> Iterator[tuple[str, Tensor]]:
    """The registry's deterministic samplers and further variants of the mechanism, on every grid."""
    made = {name: SAMPLERS.create(name) for name in SAMPLERS if not needs_options(name)}
    for name, sampler in {**made, **VARIANTS}.items():
        if sampler.stochastic or sampler.cost_depends_on != "steps":
            continue
        steps = next((n for n in range(2, nfe + 1) if sampler.nfe(n) == nfe), None)
        for grid in GRIDS if steps else ():
            try:
                yield name, sampler.sample(model, x, steps, grid=grid, initial=x)
            except ValueError:  # this sampler refuses this process
                continue


def needs_options(name: str) -> bool:
    try:
        SAMPLERS.create(name)
    except ValueError:
        return True
    return False


# --- diffusers ---------------------------------------------------------------------------------------------------


def peers(path: str, model: MixtureDenoiser, x: Tensor, nfe: int) -> Iterator[tuple[str, Tensor]]:
    """diffusers' schedulers with the exact denoiser, each with its own spacings and sigmas."""
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
        shifts = [{"flow_shift": shift} for shift in (1.0, 3.0)]
        cases = [(name, cls, {**given, **flow}, shifts) for name, cls, given in multistep]
        names = ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete")
        cases += [(n, f"{n}Scheduler", {}, [{"shift": 1.0}, {"shift": 3.0}]) for n in names]
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
                    yield f"diffusers {name}", end


def run_peer(scheduler: Any, path: str, model: MixtureDenoiser, x: Tensor, steps: int) -> tuple[Tensor, int]:
    """(end, evaluations) of a scheduler's own loop from the state x at the noisiest level."""
    scheduler.set_timesteps(steps)
    name, cond, calls = type(scheduler).__name__, model.condition(None, len(x)), 0
    in_sigma = name in ("EulerDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler")
    first = float(getattr(scheduler, "sigmas", [0.0])[0])
    state = x * math.sqrt(1 + first**2) if in_sigma else x * (first / 80 if path == "edm80" else 1)
    for i, t in enumerate(scheduler.timesteps):
        alpha, sigma = scales_of(scheduler, path, i, int(t))
        # The denoiser of a state at any (alpha, sigma), whatever its path's times.
        at = Scales(*(torch.tensor(v, dtype=F64) for v in (0.5, alpha, sigma, 0.0, 0.0)))
        d = model(state * alpha if in_sigma else state, at, cond)
        out = {"vp_linear": d.eps, "flow_linear": d.eps - d.x0, "edm80": None}[path]
        if out is None:
            level = scheduler.sigmas[i].double()
            data = scheduler.config.sigma_data
            skip, scale = data**2 / (level**2 + data**2), level * data / (level**2 + data**2).sqrt()
            out = (d.x0 - skip * state) / scale
        if in_sigma or "EDMEuler" in name:
            scheduler.scale_model_input(state, t)
        state = scheduler.step(out, t, state).prev_sample.double()
        calls += 1
    return state, calls


def scales_of(scheduler: Any, path: str, i: int, t: int) -> tuple[float, float]:
    """(alpha, sigma) of the scheduler's i-th evaluation, from its own table."""
    if not hasattr(scheduler, "sigmas"):
        alpha_bar = float(scheduler.alphas_cumprod[t].double())
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
    level = float(scheduler.sigmas[i].double())
    if path == "edm80":
        return 1.0, level
    return (1 - level, level) if path == "flow_linear" else (1 / math.hypot(1, level), level / math.hypot(1, level))


# --- table -------------------------------------------------------------------------------------------------------


def measure(path: str, model: MixtureDenoiser, z: Tensor, exact: Tensor | None) -> dict[str, dict[int, float]]:
    """RMS error on its best grid: by solver, by number of evaluations."""
    process = PATHS[path]
    x = z * (80 if path == "edm80" else 1)
    exact = exact_end(model, x, process.scales(1.0)) if exact is None else exact
    errors: dict[str, dict[int, float]] = {}
    runs: tuple[Callable[[int], Iterator[tuple[str, Tensor]]], ...] = (
        lambda nfe: ours(model, x, nfe),
        lambda nfe: peers(path, model, x, nfe),
    )
    for nfe in NFES:
        for name, end in (pair for run in runs for pair in run(nfe)):
            rms = float((end - exact).square().mean().sqrt())
            if math.isfinite(rms):
                of = errors.setdefault(name, {})
                of[nfe] = min(rms, of.get(nfe, math.inf))
    return errors


def table(title: str, errors: dict[str, dict[int, float]]) -> str:
    """Markdown: peers and ours, the best first at 10 evaluations; the best of each number in bold."""
    best = {nfe: min(of.get(nfe, math.inf) for of in errors.values()) for nfe in NFES}
    rows = [f"### {title}", "", "| solver | " + " | ".join(map(str, NFES)) + " |", "|---|" + "---|" * len(NFES)]
    for name, of in sorted(errors.items(), key=lambda item: item[1].get(10, math.inf)):
        cells = (f"{of[nfe]:.3g}" if nfe in of else "" for nfe in NFES)
        marked = (f"**{c}**" if of.get(n) == best[n] else c for c, n in zip(cells, NFES, strict=True))
        rows.append(f"| {name} | " + " | ".join(marked) + " |")
    return "\n".join([*rows, "", summary(errors), ""])


def summary(errors: dict[str, dict[int, float]]) -> str:
    """Our best error over the peers' best, at each number of evaluations."""
    parts = []
    for nfe in NFES:
        mine = min((of[nfe], n) for n, of in errors.items() if nfe in of and not n.startswith("diffusers"))
        other = min((of[nfe], n) for n, of in errors.items() if nfe in of and n.startswith("diffusers"))
        parts.append(f"{nfe}: {mine[0] / other[0]:.2f} ({mine[1]} to {other[1].removeprefix('diffusers ')})")
    return "dinit's best error over diffusers' best: " + "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", type=Path)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    problem = load_file(given.problem) if given.problem else made_up_problem()
    names = sorted({key.split(".")[1] for key in problem if key.startswith("gmm.")})
    parts = ["# Error at few network evaluations", "", (__doc__ or "").split("\n\n")[1].replace("\n", " "), ""]
    for name in names:
        prior = [problem[f"gmm.{name}.{part}"] for part in ("means", "var", "weights")]
        for path, process in PATHS.items():
            model = MixtureDenoiser(process, prior[0], prior[1], prior[2])
            errors = measure(path, model, problem["in.z"], problem.get(f"out.{name}.{path}"))
            parts.append(table(f"{name}, {path}", errors))
            print(parts[-1], flush=True)
    given.out.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
