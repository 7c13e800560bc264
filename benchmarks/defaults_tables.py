"""The page of benchmarks/defaults.py: tables of what was measured."""

from __future__ import annotations

import math
from typing import Any

JUDGED = ("8", "10", "15", "20")
HEAD = """# What a solver does with nothing but the number of steps given

`python benchmarks/defaults.py` (mixtures) and `python benchmarks/defaults.py --networks` write this page from
`defaults.json`. The mixtures have exact denoisers and exact ends: five Gaussians in 32 dimensions, smooth
(standard deviations from 0.2 up) and sharp (from 0.12 up), 64 starts. Errors are RMS. A peer's is the least of all
solvers and grids of azula, k-diffusion and diffusers that can be the best by benchmarks/results/solvers.md, tuned
for every problem and number of evaluations; dinit's are those of defaults.
"""


def finite(value: float | None) -> float:
    return math.inf if value is None else value


def ratio(value: float) -> str:
    return "" if not math.isfinite(value) else f"{value:.2f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def page(found: dict[str, Any]) -> str:
    """The whole page."""
    parts = [HEAD]
    if mixtures := found["mixtures"]:
        parts += ["## `auto`, and the best of dinit's, over the best peer", best(mixtures)]
        parts += ["## Every solver as it comes, over the best peer: least and greatest at 8 to 20 evaluations"]
        parts += [own(mixtures)]
        parts += ["## Multistep solvers: the default over the best grid and end of all"]
        parts += [
            "The greatest of the ratios at 8 to 20 evaluations on the smooth and the sharp mixture, for each "
            "process; then the one grid and end whose own greatest ratio is the least.",
            placed(mixtures),
        ]
    for name, run in found["networks"].items():
        parts += [f"## {name}: RMS distance to 1,000 steps by number of evaluations, and FID of 500", network(run)]
    return "\n\n".join(parts).replace("\n\n\n", "\n\n") + "\n"


def best(mixtures: dict[str, Any]) -> str:
    nfes = list(next(iter(mixtures.values())))
    rows = []
    for problem, runs in mixtures.items():
        auto, least = [], []
        for nfe in nfes:
            peer, ends = runs[nfe]["peer"][0], runs[nfe]["own"]
            name = min(ends, key=lambda one: finite(ends[one]))
            auto.append(ratio(finite(ends["auto"]) / peer))
            least.append(f"{finite(ends[name]) / peer:.2f} {name}")
        rows += [[problem, "auto", *auto], ["", "best", *least]]
    peers = [
        [f"peer on {problem}", "", *(f"{runs[nfe]['peer'][0]:.2g} {runs[nfe]['peer'][1]}" for nfe in nfes)]
        for problem, runs in mixtures.items()
    ]
    return table(["problem", "", *nfes], rows + peers)


def own(mixtures: dict[str, Any]) -> str:
    names = next(iter(mixtures.values()))["8"]["own"]
    rows = []
    for name in names:
        cells = []
        for runs in mixtures.values():
            all_of = [finite(runs[nfe]["own"][name]) / runs[nfe]["peer"][0] for nfe in JUDGED]
            ran = [one for one in all_of if math.isfinite(one)]
            cells.append(f"{min(ran):.2f} – {max(ran):.2f}" if ran else "")
        rows.append([name, *cells])
    return table(["solver", *mixtures], rows)


def placed(mixtures: dict[str, Any]) -> str:
    paths = dict.fromkeys(problem.split("_", 1)[1] for problem in mixtures)
    rows = []
    for name in next(iter(mixtures.values()))["8"]["placed"]:
        cells = []
        for path in paths:
            cases = cases_of(mixtures, path, name)
            worst = max((of_default / least_of(of_all) for of_default, of_all in cases), default=math.inf)
            label, of_one = best_of_one_grid(mixtures, path, name)
            cells += [ratio(worst), f"{ratio(of_one)} {label}" if label else ""]
        rows.append([name, *cells])
    return table(["solver", *(head for path in paths for head in (path, "best of one grid"))], rows)


def cases_of(mixtures: dict[str, Any], path: str, solver: str) -> list[tuple[float, dict[str, float | None]]]:
    """(error as it comes, errors by grid and end) at every judged number of evaluations on mixtures of a path."""
    runs = [one for problem, one in mixtures.items() if problem.endswith(path)]
    cases = [(finite(one[nfe]["own"][solver]), one[nfe]["placed"][solver]) for one in runs for nfe in JUDGED]
    return [(of_default, of_all) for of_default, of_all in cases if any(of_all.values())]


def least_of(errors: dict[str, float | None]) -> float:
    return min(map(finite, errors.values()))


def best_of_one_grid(mixtures: dict[str, Any], path: str, solver: str) -> tuple[str, float]:
    """The grid and end whose greatest error over the least of all is least, and that ratio; '' where none runs."""
    cases = cases_of(mixtures, path, solver)
    worst = {
        label: max(finite(of_all[label]) / least_of(of_all) for _, of_all in cases)
        for label in (cases[0][1] if cases else {})
    }
    return min(worst.items(), key=lambda found: found[1]) if worst else ("", math.inf)


def network(run: dict[str, Any]) -> str:
    """A row for every solver as it comes and one on its best grid on mixtures; columns by number of evaluations."""
    columns = [
        (f"{guidance}{title} {nfe}", run[guidance][kind][nfe])
        for guidance in ("unguided", "guided")
        for kind, title in (("distance", ""), ("fid", " FID"))
        for nfe in run[guidance][kind]
    ]
    rows = []
    for key in columns[0][1]:
        name, _, kind = key.partition(" ")
        cells = [str(at.get(key) or "") for _, at in columns]
        rows.append([name if not kind else "", run["best"][name] if kind else "as it comes", *cells])
    checks = " and ".join(f"{run[label]['check']} {label}" for label in ("unguided", "guided"))
    note = f"1,000 steps of `auto` and 500 of `unipc` differ by {checks}."
    return f"{note}\n\n{table(['solver', 'grid, end', *(head for head, _ in columns)], rows)}"
