"""Error of every deterministic sampler at few network evaluations, against diffusers', azula's and k-diffusion's.

The data are a class-conditional mixture of Gaussians, so the denoiser is exact and so is the end of the
probability-flow ODE: what is left is the solver's own error. Every sampler of the registry runs as it comes, and
every peer by its own loop on its own grids; for each the best grid is shown, with the same number of evaluations
(NFE), counted, from the same 64 noises and labels. A sample's error is the RMS over its pixels.

Run: python benchmarks/solvers.py [--search] [--digits [NAME ...]] [--problem FILE] [--nfe N ...] [--jobs N]
--search: adds the schedules that `SolverSearch` finds on other noises, labels and another seed.
--digits: instead, the distance to the 1,000-step solution of shipped models, and KID: all, or those named.
--problem: a safetensors file with gmm.NAME.{means,var,weights}, in.z and out.NAME.{vp_linear,edm80,flow_linear}.
azula and k-diffusion come with `pip install dinit[benchmarks]`; without them their rows are left out.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from solvers_digits import DIGITS, digits
from solvers_measure import MISSING, NFES, measure, quiet, report
from solvers_problems import mixtures
from solvers_tables import head_to_head, namesakes

from dinit.samplers.search.solver import SolverSearch

SEARCH = SolverSearch(population=16, generations=10, fit=30, seed=7, reference_steps=400)
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", type=Path)
    parser.add_argument("--digits", metavar="NAME", nargs="*")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--nfe", type=int, nargs="+", default=NFES)
    parser.add_argument("--jobs", type=int, default=1, help="problems measured at a time")
    parser.add_argument("--out", type=Path, help="the Markdown file; its plots go into the same folder")
    given = parser.parse_args()
    if MISSING:
        print(f"{' and '.join(MISSING)} not installed: going on without (pip install dinit[benchmarks])")
    quiet()
    if given.digits is not None:
        digits(given.digits or DIGITS, given.out or RESULTS / "solvers_digits.md", given.jobs)
        return
    found = list(mixtures(given.problem))
    with ProcessPoolExecutor(given.jobs, initializer=quiet) as pool:
        measured = pool.map(partial(measure, nfes=given.nfe, search=SEARCH if given.search else None), found)
        every = {}
        for problem, errors in zip(found, measured, strict=True):
            every[problem.name] = errors
            print("\n".join([problem.name, *head_to_head(errors), *namesakes(errors)]), flush=True)
    name = "solvers.md" if not given.problem else f"solvers_{given.problem.stem}.md"
    report(every, (__doc__ or "").strip().splitlines()[2:6], given.out or RESULTS / name)


if __name__ == "__main__":
    main()
