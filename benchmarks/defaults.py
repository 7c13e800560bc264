"""What a solver does with nothing but the number of steps given: the table that decides default grids and ends.

`python benchmarks/defaults.py` measures exact mixtures, `python benchmarks/defaults.py --networks digits-dit` a
shipped network; the numbers of both are kept in results/defaults.json, from which results/defaults.md is written.
`--problems FILE` takes the mixtures of a file, as benchmarks/solvers.py does.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peers_azula
import peers_diffusers
import peers_kdiffusion
import torch
from solvers_problems import PATHS, Problem, exact_end, given_problem, start_of
from torch import Tensor

from dinit import Pipeline
from dinit.diffusion import Denoiser
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import GRIDS, SAMPLERS, Sampler, TimeGrid
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.guidance import CFG
from dinit.samplers.points import End

F64 = torch.float64
NFES, JUDGED = (5, 8, 10, 15, 20, 50), (8, 10, 15, 20)
SHIFTS = (0.5, 0.75, 0.9, 1.0, 1.4, 2.0, 3.0)
EVEN = ("uniform", "quadratic", "log-snr", "karras")
PRIOR = {"smooth": (21, 0.04, 0.08, 0.4), "sharp": (22, 0.0145, 0.08, 0.55)}  # seed, variances from .. up, means
PEERS = (peers_azula, peers_kdiffusion, peers_diffusers)
RESULTS = Path(__file__).parent / "results"
REFERENCE_STEPS, IMAGES = 250, 8
SCALES = {"fashion-28": 2.0, "glyphs-32": 4.0}


def problems(file: Path | None) -> Iterator[Problem]:
    """A smooth and a sharp mixture of five Gaussians on three paths, or those of a file."""
    for name, (seed, least, spread, size) in PRIOR.items():
        for path, process in PATHS.items():
            if file:
                yield given_problem(file, name, path)
                continue
            generator = torch.Generator().manual_seed(seed)
            means = size * torch.randn(5, 2, 4, 4, generator=generator, dtype=F64)
            variances = least + spread * torch.randn(5, 2, 4, 4, generator=generator, dtype=F64).square()
            model = MixtureDenoiser(process, means, variances, torch.full((5,), 0.2, dtype=F64))
            start = start_of(process, (64, 2, 4, 4), 3)
            exact = exact_end(model, start, torch.zeros(64, dtype=torch.long))
            yield Problem(f"{name}_{path}", model, start, exact)


def solvers() -> dict[str, Sampler]:
    """Deterministic samplers of a fixed cost, by the names that they have with nothing but steps."""
    found = {}
    for name in SAMPLERS:
        sampler = SAMPLERS.create(name)
        fixed = sampler.claims().cost_depends_on == "steps" and sampler.own_grid is None
        if fixed and not sampler.stochastic and name != "ddim-inverse":
            found[name] = sampler
    return found


def multistep() -> dict[str, Sampler]:
    of_history = "dinit.samplers.multistep"
    return {name: one for name, one in solvers().items() if type(one).__module__.startswith(of_history)}


def grids() -> dict[str, TimeGrid]:
    return {f"shifted {shift:g}": Shifted(shift) for shift in SHIFTS} | {one: GRIDS.create(one) for one in EVEN}


def ended(
    model: Denoiser, noise: Tensor, sampler: Sampler, nfe: int, grid: TimeGrid | None = None, end: End | None = None
) -> Tensor | None:
    """The end of a run of nfe evaluations; None where no number of steps takes as many or the sampler refuses."""
    clean = (sampler.end_for(model.process) if end is None else end) == "clean"
    # A last step of the solver has its evaluations in place of the one of the posterior mean.
    each = sampler.claims().nfe_per_step
    steps = nfe // each if clean else next((n for n in range(1, nfe + 1) if sampler.nfe(n) >= nfe), nfe)
    try:
        *_, last = sampler.iterate(model, noise, steps, grid=grid, end=end)
    except (ValueError, TypeError):
        return None
    return last.x_s if last.nfe == nfe and bool(last.x_s.isfinite().all()) else None


def among_the_best(name: str, grid: str) -> bool:
    """Whether a peer may be the best: azula's other schedules are not, by benchmarks/results/solvers.md."""
    return not name.startswith("azula") or grid.startswith(("rectified", "decay 0.5"))


def best_of_long_runs(name: str, grid: str) -> bool:
    return name.startswith(("azula vAB", "azula zEAB")) and grid.startswith("rectified")


def rms(found: Tensor | None, exact: Tensor) -> float:
    return math.inf if found is None else float((found - exact).square().mean().sqrt())


def on_mixture(problem: Problem) -> dict[str, Any]:
    """By number of evaluations: the best peer, every solver as it comes, and multistep solvers on every grid."""
    found: dict[str, Any] = {}
    for nfe in NFES:
        wanted = among_the_best if nfe in JUDGED else best_of_long_runs
        runs = [run for peer in PEERS for run in peer.peers(problem.model, problem.start, nfe, wanted)]
        peer, name, grid = min((rms(run.end, problem.exact), run.name, run.grid) for run in runs)
        own = {
            name: rms(ended(problem.model, problem.noise, sampler, nfe), problem.exact)
            for name, sampler in solvers().items()
        }
        placed = {
            name: {
                f"{label}, {end}": rms(ended(problem.model, problem.noise, sampler, nfe, made, end), problem.exact)
                for label, made in grids().items()
                for end in ("posterior-mean", "clean")
            }
            for name, sampler in multistep().items()
        }
        found[str(nfe)] = {"peer": [peer, f"{name}, {grid}"], "own": own, "placed": placed if nfe in JUDGED else {}}
        print(problem.name, nfe, f"{peer:.4g}", {n: f"{e / peer:.2f}" for n, e in own.items()}, flush=True)
    return found


def on_network(name: str) -> dict[str, Any]:
    """Distance to 250 steps, unguided and guided: every solver as it comes, and one solver of each kind by grid."""
    pipe = Pipeline.from_pretrained(name)
    plain = pipe.denoiser([i % (pipe.num_classes or 1) for i in range(IMAGES)] if pipe.num_classes else None)
    backbone = pipe.backbone.eval()
    noise = torch.randn(
        IMAGES,
        backbone.in_channels,
        backbone.image_size,
        backbone.image_size,
        generator=torch.Generator().manual_seed(3),
    )
    found: dict[str, Any] = {}
    for label, model in (("unguided", plain), ("guided", CFG(SCALES.get(name, 1.5)).wrap(plain))):
        exact = SAMPLERS.create("auto").sample(model, noise, REFERENCE_STEPS)
        check = SAMPLERS.create("unipc").sample(model, noise, REFERENCE_STEPS)
        print(f"{name}, {label}: the references differ by {rms(check, exact):.4f}", flush=True)
        found[label] = {"check": rms(check, exact), "nfe": {}}
        for nfe in (5, 10, 20):
            own = {
                one: rms(ended(model, noise, sampler, nfe), exact)
                for one, sampler in solvers().items()
                if SAMPLERS.special_case_of(one) is None
            }
            placed = {
                one: {
                    f"{title}, {end}": rms(ended(model, noise, SAMPLERS.create(one), nfe, made, end), exact)
                    for title, made in grids().items()
                    for end in (("posterior-mean", "clean") if one == "auto" else ("posterior-mean",))
                }
                for one in ("auto", "dpmpp-2m", "unipc")
            }
            found[label]["nfe"][str(nfe)] = {"own": own, "placed": placed}
            print(name, label, nfe, {n: f"{e:.4f}" for n, e in own.items()}, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=Path, help="file of mixtures")
    parser.add_argument("--networks", nargs="+", default=[], metavar="PIPELINE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    from defaults_tables import page  # tables need no torch

    kept = RESULTS / "defaults.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"mixtures": {}, "networks": {}}
    if arguments.networks:
        found["networks"] |= {name: on_network(name) for name in arguments.networks}
    else:
        found["mixtures"] = {problem.name: on_mixture(problem) for problem in problems(arguments.problems)}
    kept.write_text(json.dumps(rounded(found), indent=1) + "\n", encoding="utf-8")
    (RESULTS / "defaults.md").write_text(page(rounded(found)), encoding="utf-8")


def rounded(value: Any) -> Any:
    """Numbers to three figures, infinities as None."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.3g}") if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    main()
