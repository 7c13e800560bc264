"""Posterior methods on a recorded problem with exact posteriors: dinit's, azula's, and what exact samples score.

python benchmarks/posterior.py --problem FILE.safetensors --out benchmarks/results/posterior.md
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from posterior_azula import INSTALLED, peers
from posterior_problem import PER_MEASUREMENT, Case, case, operators, problems
from torch import Tensor

from dinit.conformance import BatchNoise
from dinit.diffusion import PROCESSES
from dinit.evaluation import PosteriorScores, posterior_scores
from dinit.inverse import POSTERIOR_SAMPLERS, Matrix, Measurement
from dinit.models import GaussianMixture
from dinit.posterior_conformance import posterior_methods, verify_posterior
from dinit.samplers import SAMPLERS
from dinit.samplers.guidance import GUIDANCES
from dinit.specs import parse_spec

# Methods of dinit, and what they run under: sampler on process.
FULL = "mmps:iterations=20"
UNDER = {
    FULL: ("auto on edm", "er-sde on edm", "ddpm on edm", "ddpm on vp"),
    "mmps": ("auto on edm", "ddpm on edm", "ddpm on vp"),
    "pigdm": ("auto on edm", "ddpm on edm", "ddpm on vp"),
    "oracle": ("auto on edm", "auto on flow", "er-sde on edm", "ddpm on edm", "ddpm on vp"),
}
OTHERS = ("auto on edm", "ddpm on edm")
# Particles of one image are all samples: one evaluation each, as those of azula's TDS.
PARTICLES = ("tds", "tds:covariance=jacobian", "tds:covariance=jacobian,iterations=20")
EXACT_DRAWS = 20


@dataclass(frozen=True)
class Result:
    """Scores of a run; None where it was refused."""

    problem: str
    operator: str
    side: str
    method: str
    scores: PosteriorScores | None
    seconds: float
    note: str = ""
    deviation: float = 0.0  # of sw2 from draw to draw


def ours(one: Case, evaluations: int, seed: int) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """(name, run) of dinit's methods, samples in the order of rows."""
    measurement = Measurement(Matrix(one.a), one.y[one.rows], one.noise_std)
    assert one.prior.shape is not None
    law = one.posteriors
    several = GaussianMixture(law.weights[one.rows], law.means[one.rows], law.covariances, one.prior.shape)
    generator = torch.Generator().manual_seed(1 + 1000 * seed)
    x = torch.randn(len(one.rows), *one.prior.shape, generator=generator, dtype=torch.float64)

    def run(method: str, under: str) -> Callable[[], Tensor]:
        def go() -> Tensor:
            sampler_name, _, process_name = under.partition(" on ")
            process = PROCESSES.create(process_name)
            prior = one.prior.denoiser(process)
            if method == "oracle":
                sampler, denoiser = SAMPLERS.create(sampler_name), several.denoiser(process)
            elif method.partition(":")[0] in POSTERIOR_SAMPLERS:
                spec = {**parse_spec(method), "measurement": measurement}
                sampler, denoiser = POSTERIOR_SAMPLERS.create(spec), prior
            else:
                sampler = SAMPLERS.create(sampler_name)
                denoiser = GUIDANCES.create({**parse_spec(method), "measurement": measurement}).wrap(prior)
            steps = max(1, evaluations // sampler.claims().nfe_per_step)
            return sampler.sample(denoiser, x, steps, noise_source=BatchNoise(3 + 1000 * seed))

        return go

    def particles(method: str, under: str) -> Callable[[], Tensor]:
        def go() -> Tensor:
            each = Measurement(Matrix(one.a), one.y, one.noise_std)
            spec = {**parse_spec(method), "measurement": each, "particles": PER_MEASUREMENT}
            sampler = POSTERIOR_SAMPLERS.create(spec)
            denoiser = one.prior.denoiser(PROCESSES.create(under))
            *_, last = sampler.iterate(
                denoiser, x[: len(one.y)], evaluations, noise_source=BatchNoise(3 + 1000 * seed)
            )
            ends = torch.softmax(last.state.log_weights, 0).cumsum(0).T.contiguous()
            places = (torch.arange(PER_MEASUREMENT) + 0.5).double() / PER_MEASUREMENT
            chosen = torch.searchsorted(ends, places.expand(len(one.y), -1).contiguous())
            found = last.state.x.reshape(PER_MEASUREMENT, len(one.y), -1).transpose(0, 1)
            return torch.cat([of_one[which] for of_one, which in zip(found, chosen, strict=True)])

        return go

    for method in ("oracle", FULL, *posterior_methods()):
        sampler = method in POSTERIOR_SAMPLERS
        for under in ("own on edm", "own on vp") if sampler else UNDER.get(method, OTHERS):
            yield f"{method}, {under.removeprefix('own ')}", run(method, under)
    for method in PARTICLES:
        for under in ("edm", "vp"):
            yield f"{method}, all particles, on {under}", particles(method, under)


def scored(one: Case, samples: Tensor) -> PosteriorScores:
    flat = samples.flatten(1)
    return PosteriorScores.average(
        [
            posterior_scores(flat[one.rows == i], one.posteriors.row(i), one.a, one.y[i], one.noise_std, seed=i)
            for i in range(len(one.y))
        ]
    )


def measured(task: tuple[Path, str, str, float, int, str, int]) -> list[Result]:
    """All methods on one case."""
    path, problem, operator, noise, evaluations, only, seeds = task
    one = case(path, problem, operator, noise)
    generator = torch.Generator().manual_seed(4)
    draws = [
        scored(one, one.posteriors.sample(PER_MEASUREMENT, generator).flatten(0, 1)) for _ in range(EXACT_DRAWS)
    ]
    deviation = statistics.stdev([draw.sw2 for draw in draws])
    exact = PosteriorScores.average(draws)
    results = [Result(problem, operator, "", "exact samples", exact, 0.0, deviation=deviation)]
    runs: dict[tuple[str, str], list[Callable[[], Tensor]]] = {}
    for seed in range(seeds):
        for side, found in (("dinit", ours(one, evaluations, seed)), ("azula", peers(one, evaluations, seed))):
            for name, run in found:
                if only in f"{side} {name}":
                    runs.setdefault((side, name), []).append(run)
    for (side, name), of_seeds in runs.items():
        began = time.process_time()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scores, note = PosteriorScores.average([scored(one, run()) for run in of_seeds]), ""
        except ValueError as refusal:
            scores, note = None, str(refusal)
        results.append(Result(problem, operator, side, name, scores, time.process_time() - began, note))
    return results


def table(results: list[Result], problem: str, score: str) -> list[str]:
    """Methods by operators, of one score; exact samples first, then by the sum over operators."""
    here = [one for one in results if one.problem == problem]
    columns = list(dict.fromkeys(one.operator for one in here))
    lines = [f"| {problem}: {score} | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    rows: dict[str, dict[str, str]] = {}
    for one in here:
        cell = "refused" if one.scores is None else f"{getattr(one.scores, score):.3f}"
        finite = one.scores is None or one.scores.finite == 1
        rows.setdefault(f"{one.side} {one.method}".strip(), {})[one.operator] = cell if finite else "diverged"
    for name, cells in rows.items():
        lines.append(f"| {name} | " + " | ".join(cells.get(column, "") for column in columns) + " |")
    return lines


def recorded(path: Path, noise: float, evaluations: int) -> dict[tuple[str, str], tuple[float, str]]:
    """The best peer of each case in a table peers.csv in the folder of the problem; empty where there is none."""
    table = path.parent / "peers.csv"
    found: dict[tuple[str, str], tuple[float, str]] = {}
    if table.exists():
        with table.open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                fits = float(row["sigma_y"]) == noise and int(row["nfe"] or 0) == evaluations and row["sw2"]
                if fits and not row["method"].startswith("oracle"):
                    key, entry = (row["problem"], row["operator"]), (float(row["sw2"]), row["method"])
                    found[key] = min(found.get(key, entry), entry)
    return found


def best(results: list[Result], table: dict[tuple[str, str], tuple[float, str]]) -> list[str]:
    """The best of each side by sliced Wasserstein distance, methods with the exact posterior left out."""
    lines = [
        "| problem | operator | exact samples | best of dinit | | best of azula | | recorded | | no worse |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for problem, operator in dict.fromkeys((one.problem, one.operator) for one in results):
        here = [one for one in results if (one.problem, one.operator) == (problem, operator) and one.scores]
        spread = next(one.deviation for one in here if one.side == "")
        top = {}
        for side in ("", "dinit", "azula"):
            found = [one for one in here if one.side == side and not one.method.startswith("oracle")]
            finite = [(one.scores.sw2, one.method) for one in found if one.scores and one.scores.finite == 1]
            top[side] = min(finite, default=(float("nan"), ""))
        (exact, _), mine, theirs = top[""], top["dinit"], top["azula"]
        cells = [
            problem,
            operator,
            f"{exact:.3f} +- {spread:.3f}",
            f"{mine[0]:.3f}",
            mine[1],
            f"{theirs[0]:.3f}",
            theirs[1],
        ]
        peer = table.get((problem, operator), (float("nan"), ""))
        verdict = "**no**" if mine[0] > theirs[0] or mine[0] > peer[0] else "yes"
        if verdict != "yes" and mine[0] <= exact + spread:
            verdict = "as exact samples"
        cells += [f"{peer[0]:.3f}", peer[1], verdict]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problem", type=Path, required=True)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--evaluations", type=int, default=50)
    parser.add_argument("--case", default="", help="cases with this in 'problem/operator' alone")
    parser.add_argument("--method", default="", help="methods with this in 'side name' alone")
    parser.add_argument("--seeds", type=int, default=1, help="runs of every method; scores are their means")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-table", action="store_true", help="without the table of dinit verify --posterior")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    tasks = [
        (options.problem, problem, operator, options.noise, options.evaluations, options.method, options.seeds)
        for problem in problems(options.problem)
        for operator in operators(options.problem, problem, options.noise)
        if options.case in f"{problem}/{operator}"
    ]
    results: list[Result] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for found in pool.map(measured, tasks):
            results += found
            print(f"{found[0].problem} {found[0].operator}: {len(found)} methods", flush=True)
    peer = "azula " + __import__("azula").__version__ if INSTALLED else "azula is not installed"
    lines = [
        "# Samples of p(x | y) by the exact posterior",
        "",
        f"`python benchmarks/posterior.py --problem FILE --seeds {options.seeds}`, noise {options.noise:g}, "
        f"{options.evaluations} evaluations, {PER_MEASUREMENT} samples for each of three measurements, float64; "
        f"{peer}, on its VP schedule; means over seeds. sw2 is the sliced Wasserstein distance to exact samples "
        "in the posterior's standard deviations; what exact samples have themselves is the mean and the deviation "
        f"of {EXACT_DRAWS} draws of as many. `oracle` runs a sampler with the exact E[x0 | x_t, y]: what it loses "
        f"is the solver's. `tds` alone makes each sample of 8 particles, of {options.evaluations} evaluations "
        f"together; `all particles` is one run of {PER_MEASUREMENT} a measurement, which are all samples, of "
        f"{options.evaluations} evaluations each, as those of azula's TDS. `recorded` is the best peer "
        "in the table that came with the problem.",
        "",
        *best(results, recorded(options.problem, options.noise, options.evaluations)),
    ]
    for score in ("sw2", "trace_ratio", "white_trace", "mean_err_white", "weight_err", "data"):
        for problem in problems(options.problem):
            if score != "weight_err" or problem != "gaussian":
                lines += ["", *table(results, problem, score)]
    if not options.no_table:
        report = verify_posterior(workers=options.workers)
        lines += ["", "## `dinit verify --posterior`", "", report.markdown()]
    text = "\n".join(lines) + "\n"
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
