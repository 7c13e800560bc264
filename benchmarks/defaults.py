"""What a solver does with nothing but the number of steps given: the table that decides default grids and ends.

`python benchmarks/defaults.py` measures exact mixtures, and then `python benchmarks/defaults.py --networks` shipped
networks (8 minutes on one core), their solvers on the grids that are best on mixtures among them. The numbers of
both are kept in results/defaults.json, from which results/defaults.md is written. `--problems FILE` takes the
mixtures of a file, as benchmarks/solvers.py does.
"""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import peers_azula
import peers_diffusers
import peers_kdiffusion
import torch
from defaults_tables import best_of_one_grid, page
from solvers_problems import PATHS, Problem, exact_end, given_problem, start_of
from torch import Tensor

from dinit import Pipeline
from dinit.data import DATASETS
from dinit.diffusion import Denoiser
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.evaluation.features.digits_classifier import load_classifier
from dinit.evaluation.metrics.frechet import frechet_distance
from dinit.evaluation.metrics.gaussian import Gaussian, gaussian_of
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
NETWORKS, NFES_OF_NETWORKS = ("digits-dico", "digits-dit", "digits-unet"), (5, 10, 20, 50)
REFERENCE_STEPS, CHECK_STEPS, IMAGES, OF_FID, SCALE = 1000, 500, 10, 500, 1.5
FID_GUIDED = ("auto", "ab", "deis", "dpmpp-2m", "unipc")


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


def on_network(name: str, mixtures: dict[str, Any]) -> dict[str, Any]:
    """Distance to 1,000 steps and FID of multistep solvers: as they come, and on their best grid on mixtures.

    Args:
        name: A shipped pipeline of digits.
        mixtures: What was measured on mixtures, with the best grid of every solver on a path like the network's.
    """
    pipe = Pipeline.from_pretrained(name)
    path = {LinearFlow: "flow_linear", EDM: "edm80"}.get(type(pipe.process), "vp_linear")
    places = {one: best_of_one_grid(mixtures, path, one)[0] for one in of_networks() if one != "auto"}
    real = DATASETS.create({"name": "digits", "split": "test"})
    reference = features(torch.stack([torch.as_tensor(real[i][0]).float() for i in range(len(real))]))
    found: dict[str, Any] = {"best": places}
    for label, scale in (("unguided", 0.0), ("guided", SCALE)):
        model, start = network(pipe, IMAGES, scale)
        exact = SAMPLERS.create("auto").sample(model, start, REFERENCE_STEPS)
        check = rms(SAMPLERS.create("unipc").sample(model, start, CHECK_STEPS), exact)
        found[label] = {"check": check, "distance": {}, "fid": {}}
        for nfe in NFES_OF_NETWORKS:
            runs = ends(model, start, nfe, of_networks(), places)
            found[label]["distance"][str(nfe)] = {key: rms(end, exact) for key, end in runs.items()}
            print(name, label, nfe, found[label]["distance"][str(nfe)], flush=True)
        model, start = network(pipe, OF_FID, scale)
        for nfe in (10,) if scale else (10, 20):
            runs = ends(model, start, nfe, FID_GUIDED if scale else of_networks(), places)
            fids = {key: math.inf if end is None else fid(end, reference) for key, end in runs.items()}
            found[label]["fid"][str(nfe)] = fids
            print(name, label, nfe, "FID", fids, flush=True)
    return found


def of_networks() -> list[str]:
    """Multistep solvers of one evaluation a step that are not special cases of another one."""
    known = {name: one for name, one in multistep().items() if SAMPLERS.special_case_of(name) is None}
    return [name for name, one in known.items() if one.claims().nfe_per_step == 1]


def network(pipe: Pipeline, count: int, scale: float) -> tuple[Denoiser, Tensor]:
    """The denoiser of labels 0 to 9 over and over, guided where scale is above 0, and the noise to start from."""
    plain = pipe.denoiser([i % 10 for i in range(count)])
    start = torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    return CFG(scale).wrap(plain) if scale else plain, start


def ends(
    model: Denoiser, start: Tensor, nfe: int, names: Iterable[str], places: Mapping[str, str]
) -> dict[str, Tensor | None]:
    """Where the solvers lead, by name, and with " best" after it on the grid and with the end of places."""
    found = {}
    for name in names:
        found[name] = ended(model, start, SAMPLERS.create(name), nfe)
        if name in places:
            label, end = places[name].split(", ")
            found[f"{name} best"] = ended(model, start, SAMPLERS.create(name), nfe, grids()[label], cast(End, end))
    return found


def features(images: Tensor) -> Gaussian:
    """Mean and covariance of the features of digits (N, 1, 8, 8) in [-1, 1]."""
    network = load_classifier()
    return gaussian_of(torch.cat([network.features(part) for part in images.clamp(-1, 1).split(250)]).numpy())


def fid(images: Tensor, reference: Gaussian) -> float:
    return frechet_distance(features(images), reference)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=Path, help="file of mixtures")
    parser.add_argument("--networks", nargs="*", metavar="PIPELINE", help="of digits; without names all of them")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    warnings.simplefilter("ignore")
    kept = RESULTS / "defaults.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"mixtures": {}, "networks": {}}
    if arguments.networks is not None:
        for name in arguments.networks or NETWORKS:
            found["networks"][name] = on_network(name, found["mixtures"])
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
