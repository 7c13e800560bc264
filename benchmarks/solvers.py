"""Error of every deterministic sampler at few network evaluations, beside diffusers' schedulers, on one denoiser.

The data are a class-conditional mixture of Gaussians, so the denoiser is exact and so is the end of the
probability-flow ODE: what is left is the solver's own error. Every sampler of the registry runs as it comes, and
every peer on its own grids; for each the best grid is shown, with the same number of evaluations (NFE) from the
same 64 noises and labels. A sample's error is the RMS over its pixels.

Run: python benchmarks/solvers.py [--search] [--digits NAME] [--problem FILE]
--search: adds the schedules that `SolverSearch` finds on other noises, labels and another seed.
--digits: instead, the distance to the 1,000-step solution of a shipped flow model, such as digits-dit.
--problem: a safetensors file with gmm.NAME.{means,var,weights}, in.z and out.NAME.{vp_linear,edm80,flow_linear}.
"""

from __future__ import annotations

import argparse
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from other_solvers import peers
from safetensors.torch import load_file
from torch import Tensor

import dinit.models  # noqa: F401  (makes diffusers importable beside a torchvision whose operators do not load)
from dinit.diffusion import Denoiser, Process
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import SAMPLERS, Sampler, TimeGrid
from dinit.samplers.adams import AdamsBashforth, ExponentialAB
from dinit.samplers.deis import DEIS
from dinit.samplers.grids import Karras, LogSNR, Uniform
from dinit.samplers.grids_shifted import Shifted
from dinit.samplers.solver_search import SolverSearch
from dinit.samplers.unified import Rule, Unified
from dinit.samplers.unipc import UniPC

NFES = (5, 8, 10, 15, 20, 50)
SEARCHED = (5, 8, 10)
GRIDS: dict[str, TimeGrid] = {
    "log-snr": LogSNR(),
    "karras": Karras(),
    "uniform": Uniform(),
    "shifted 1 t_min": Shifted(1.0, "t_min"),
    "shifted 1 from 0.999": Shifted(1.0, first=0.999),
    "shifted 2 t_min": Shifted(2.0, "t_min"),
    "shifted 3 open": Shifted(3.0),
    "shifted 3 t_min": Shifted(3.0, "t_min"),
}
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
# A network takes longer than a mixture: the solvers and grids that it is measured with, up to 20 evaluations.
FOR_NETWORKS = ("euler", "unipc", "unipc 3", "dpmpp-2m", "eab 3 velocity")
NETWORK_GRIDS = ("uniform", "shifted 1 from 0.999", "shifted 2 t_min")
# Steps that another entry takes too (Euler's, exponential Adams-Bashforth's) or nearly (Heun's, DPM-Solver-2's).
LEFT_OUT = ("ddim-inverse", "dpm-solver-1", "edm-euler", "flow-euler", "eab", "unified", "edm-heun", "dpm-2")
NAMESAKES = {
    "dpmpp-2m": ("DPMSolverMultistep 2M", "EDMDPMSolverMultistep 2M"),
    "dpmpp-3m": ("DPMSolverMultistep 3M", "EDMDPMSolverMultistep 3M"),
    "unipc": ("UniPC 2",),
    "unipc 3": ("UniPC 3",),
    "deis log-rho": ("DEIS 3",),
    "euler": ("EulerDiscrete", "EDMEuler", "FlowMatchEulerDiscrete"),
    "ddim": ("DDIM",),
    "heun": ("HeunDiscrete",),
    "flow-heun": ("FlowMatchHeunDiscrete",),
    "lms": ("LMSDiscrete",),
    "pndm": ("PNDM",),
}
NOT_MEASURED = "azula and k-diffusion are not measured: there is no runner for them."
RESULTS = Path(__file__).parent / "results"
F64 = torch.float64


@dataclass(frozen=True)
class Problem:
    """A denoiser, the states that runs start from, and where their exact solutions end."""

    name: str
    path: str
    model: Denoiser
    start: Tensor
    exact: Tensor


@dataclass(frozen=True, order=True)
class Score:
    """Errors over samples: RMS, median, maximum; and the grid."""

    rms: float
    median: float
    maximum: float
    grid: str = ""


Errors = dict[str, dict[int, Score]]


def mixture(process: Process) -> MixtureDenoiser:
    """Five components in (2, 4, 4), in two classes."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=F64)  # noqa: E731
    means, variances = 0.5 * draw(5, 2, 4, 4), 0.02 + 0.1 * draw(5, 2, 4, 4).square()
    weights = torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3], dtype=F64)
    return MixtureDenoiser(process, means, variances, weights, torch.tensor([0, 1, 0, 1, 1]))


def start_of(path: str, shape: Sequence[int], seed: int) -> Tensor:
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return noise * (80 if path == "edm80" else 1)


def mixture_problem(path: str) -> Problem:
    model, labels, start = mixture(PATHS[path]), torch.arange(64) % 2, start_of(path, (64, 2, 4, 4), 3)
    return Problem("mixture", path, model.given(labels), start, exact_end(model, start, labels))


def given_problem(file: Path, name: str, path: str) -> Problem:
    data = load_file(file)
    prior = [data[f"gmm.{name}.{part}"] for part in ("means", "var", "weights")]
    model = MixtureDenoiser(PATHS[path], prior[0], prior[1], prior[2])
    return Problem(name, path, model, data["in.z"] * (80 if path == "edm80" else 1), data[f"out.{name}.{path}"])


def digits_problem(name: str) -> Problem:
    """64 digits of a shipped model in float32, and where 1,000 steps lead."""
    from dinit.pipelines import Pipeline

    pipeline = Pipeline.from_pretrained(name)
    path = next((path for path, process in PATHS.items() if process == pipeline.process), None)
    if path is None:
        raise ValueError(f"--digits {name}: the peers run on {list(PATHS)}; this model's is {pipeline.process}")
    backbone = pipeline.backbone.eval()
    denoiser = pipeline.denoiser([i % 10 for i in range(64)])
    size = backbone.config.image_size
    start = start_of(path, (64, backbone.in_channels, size, size), 3).float()
    exact = ExponentialAB(3, "velocity").sample(denoiser, start, 1000, grid=Uniform(), initial=start)
    return Problem(name, path, denoiser, start, exact)


def exact_end(model: MixtureDenoiser, x: Tensor, labels: Tensor) -> Tensor:
    """The ODE's end from x at t = 1: DOP853 on the straight path, onto which every path is scaled."""
    from scipy.integrate import solve_ivp

    straight = MixtureDenoiser(LinearFlow(), model.means, model.variances, model.weights, model.component_class)
    cond, k = straight.condition(labels, len(x)), model.process.scales(1.0)
    scale = float(k.alpha + k.sigma)
    shape, begin, end = x.shape, float(k.sigma) / scale, 1e-6

    def slope(t: float, y: Any) -> Any:
        return straight(torch.as_tensor(y).reshape(shape), t, cond).velocity.flatten().numpy()

    found = solve_ivp(slope, (begin, end), (x / scale).flatten().numpy(), "DOP853", rtol=1e-9, atol=1e-9)
    return straight(torch.as_tensor(found.y[:, -1]).reshape(shape), end, cond).x0


# --- dinit -------------------------------------------------------------------------------------------------------


def solvers(only: Sequence[str] = ()) -> dict[str, Sampler]:
    """The registry's deterministic samplers of a fixed cost that need no options, and the variants."""
    found = {}
    for name in SAMPLERS:
        try:
            found[name] = SAMPLERS.create(name)
        except ValueError:  # needs options
            continue
    found = {n: s for n, s in found.items() if n not in LEFT_OUT} | VARIANTS
    fixed = {n: s for n, s in found.items() if not s.stochastic and s.cost_depends_on == "steps"}
    return {n: s for n, s in fixed.items() if n in only or not only}


def ours(problem: Problem, nfe: int, only: Sequence[str] = ()) -> Iterator[tuple[str, str, Tensor]]:
    """(solver, grid, end) of every solver on every grid."""
    for name, sampler in solvers(only).items():
        steps = next((n for n in range(2, nfe + 1) if sampler.nfe(n) == nfe), None)
        for grid in (NETWORK_GRIDS if only else GRIDS) if steps else ():
            try:
                end = sampler.sample(problem.model, problem.start, steps, grid=GRIDS[grid], initial=problem.start)
            except ValueError:  # this sampler refuses this process
                continue
            yield name, grid, end


def searched(problem: Problem, nfe: int) -> Tensor:
    """The end of the schedule found on 256 noises and labels that are not the problem's."""
    labels = torch.randint(2, (256,), generator=torch.Generator().manual_seed(101))
    noise = start_of("", (256, *problem.start.shape[1:]), 100)
    found = SolverSearch(population=24, generations=40, seed=7).find(
        mixture(PATHS[problem.path]), nfe, noise, labels
    )
    return found.sampler.sample(problem.model, problem.start, grid=found.grid, initial=problem.start)


# --- tables ------------------------------------------------------------------------------------------------------


def measure(problem: Problem, only: Sequence[str] = (), search: bool = False) -> Errors:
    """The error on its best grid: by solver, by number of evaluations."""
    errors: Errors = {}

    def enter(name: str, nfe: int, grid: str, end: Tensor) -> None:
        each = (end - problem.exact).double().square().mean((1, 2, 3)).sqrt()
        score = Score(float(each.square().mean().sqrt()), float(each.median()), float(each.max()), grid)
        of = errors.setdefault(name, {})
        if math.isfinite(score.rms):
            of[nfe] = min(score, of.get(nfe, score))

    for nfe in NFES[:-1] if only else NFES:
        for name, grid, end in ours(problem, nfe, only):
            enter(name, nfe, grid, end)
        for name, grid, end in peers(problem.path, problem.model, problem.start, nfe):
            enter(f"diffusers {name}", nfe, grid, end)
        if search and nfe in SEARCHED:
            enter("searched", nfe, "searched", searched(problem, nfe))
    return {name: of for name, of in errors.items() if of}


def is_peer(name: str) -> bool:
    return name.startswith("diffusers ")


def fixed(name: str) -> bool:
    return not is_peer(name) and name != "searched"


def columns(errors: Errors) -> list[int]:
    return sorted({nfe for of in errors.values() for nfe in of})


def best(errors: Errors, nfe: int, which: Any) -> tuple[Score, str]:
    return min((of[nfe], name) for name, of in errors.items() if nfe in of and which(name))


def table(errors: Errors) -> list[str]:
    """RMS of all, the best first at 10 evaluations; the best of each number in bold."""
    nfes = columns(errors)
    least = {nfe: best(errors, nfe, lambda name: name != "searched")[0].rms for nfe in nfes}
    rows = ["| solver | " + " | ".join(map(str, nfes)) + " |", "|---|" + "---|" * len(nfes)]
    order = sorted(errors, key=lambda name: errors[name][10].rms if 10 in errors[name] else math.inf)
    for name in order:
        cells = [f"{errors[name][nfe].rms:.3g}" if nfe in errors[name] else "" for nfe in nfes]
        bold = [nfe in errors[name] and errors[name][nfe].rms == least[nfe] for nfe in nfes]
        rows.append(
            f"| {name} | " + " | ".join(f"**{c}**" if b else c for c, b in zip(cells, bold, strict=True)) + " |"
        )
    return rows


def head_to_head(errors: Errors) -> list[str]:
    """The best fixed solver, the best peer and the searched schedule at each number of evaluations."""
    rows = ["| NFE | solver, grid | RMS | median | maximum | / best peer |", "|---|---|---|---|---|---|"]
    for nfe in columns(errors):
        peer, other = best(errors, nfe, is_peer)
        entries = [best(errors, nfe, fixed), (peer, other)]
        if nfe in errors.get("searched", {}):
            entries.append((errors["searched"][nfe], "searched"))
        for score, name in entries:
            figures = " | ".join(f"{v:.3g}" for v in (score.rms, score.median, score.maximum))
            rows.append(f"| {nfe} | {name}, {score.grid} | {figures} | {score.rms / peer.rms:.2f} |")
    return rows


def namesakes(errors: Errors) -> list[str]:
    """RMS of a solver of dinit over that of the peers' solver of this name."""
    nfes = columns(errors)
    rows = ["| solver, namesake | " + " | ".join(map(str, nfes)) + " |", "|---|" + "---|" * len(nfes)]
    for name, others in NAMESAKES.items():
        for other in (o for o in others if f"diffusers {o}" in errors and name in errors):
            mine, theirs = errors[name], errors[f"diffusers {other}"]
            ratios = [f"{mine[n].rms / theirs[n].rms:.2f}" if n in mine and n in theirs else "" for n in nfes]
            rows.append(f"| {name}, {other} | " + " | ".join(ratios) + " |")
    return rows


def targets(every: dict[str, Errors]) -> list[str]:
    """Best fixed solver over best peer, and searched over best peer, for every problem."""
    rows = ["| problem | " + " | ".join(map(str, NFES)) + " |", "|---|" + "---|" * len(NFES)]
    for title, errors in every.items():
        peer = {n: best(errors, n, is_peer)[0].rms for n in columns(errors)}
        mine = {n: best(errors, n, fixed)[0].rms for n in peer}
        found = {n: score.rms for n, score in errors.get("searched", {}).items()}
        for name, of in (("best fixed", mine), ("searched", found)):
            if of:
                ratios = (f"{of[n] / peer[n]:.2f}" if n in of else "" for n in NFES)
                rows.append(f"| {title}: {name} / best peer | " + " | ".join(ratios) + " |")
    return rows


def plot(title: str, errors: Errors, file: Path) -> None:
    """Error against NFE: the six best of dinit, the six best peers, and what was searched."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    nfes = columns(errors)

    def rank(name: str) -> float:
        of = errors[name]
        return sum(math.log(score.rms) for score in of.values()) if len(of) == len(nfes) else math.inf

    mine = sorted((name for name in errors if fixed(name)), key=rank)[:6]
    theirs = sorted((name for name in errors if is_peer(name)), key=rank)[:6]
    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for names, style in ((mine, "o-"), (theirs, "x--"), ([n for n in errors if n == "searched"], "k*")):
        for name in names:
            axes.loglog(list(errors[name]), [s.rms for s in errors[name].values()], style, label=name, lw=1.2)
    axes.set(title=title, xlabel="network evaluations", ylabel="RMS error")
    axes.set_xticks(nfes, [str(n) for n in nfes])
    axes.minorticks_off()
    axes.legend(fontsize=7)
    figure.savefig(file, dpi=75)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", type=Path)
    parser.add_argument("--digits", metavar="NAME")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--out", type=Path, help="the Markdown file; its plots go beside it")
    given = parser.parse_args()
    print(NOT_MEASURED)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    out = given.out or RESULTS / (f"solvers_{given.digits}.md" if given.digits else "solvers.md")
    every: dict[str, Errors] = {}
    parts: list[str] = []
    for problem in problems(given.problem, given.digits):
        title, only = f"{problem.name}, {problem.path}", FOR_NETWORKS if given.digits else ()
        every[title] = errors = measure(problem, only, given.search and problem.name == "mixture")
        picture = out.with_name(f"{out.stem}_{problem.name}_{problem.path}.png")
        plot(title, errors, picture)
        parts += section(title, errors, picture.name)
        print("\n".join([title, *head_to_head(errors), *namesakes(errors)]), flush=True)
    lead = " ".join((__doc__ or "").strip().splitlines()[2:6])
    if given.digits:
        lead = (
            f"64 digits of {given.digits}, float32, beside where 1,000 steps lead (eab 3 velocity, uniform grid)."
        )
    rows = ["# Error at few network evaluations", "", lead, "", NOT_MEASURED, "", *targets(every), "", *parts]
    out.write_text("\n".join(rows).rstrip() + "\n", encoding="utf-8")


def section(title: str, errors: Errors, picture: str) -> list[str]:
    rows = [f"## {title}", "", f"![{title}]({picture})", "", *head_to_head(errors), ""]
    rows += ["RMS over that of the peer of the same name:", "", *namesakes(errors), ""]
    return [*rows, "RMS of all:", "", *table(errors), ""]


def problems(file: Path | None, digits: str | None) -> Iterator[Problem]:
    if digits:
        yield digits_problem(digits)
        return
    names = sorted({key.split(".")[1] for key in load_file(file) if key.startswith("gmm.")}) if file else [None]
    for name in names:
        for path in PATHS:
            yield given_problem(file, name, path) if file and name else mixture_problem(path)


if __name__ == "__main__":
    main()
