"""The page of benchmarks/defaults.py: tables of what was measured."""

from __future__ import annotations

import math
from typing import Any

JUDGED = ("8", "10", "15", "20")
HEAD = """# What a solver does with nothing but the number of steps given

`python benchmarks/defaults.py` (mixtures) and `python benchmarks/defaults.py --networks NAME` write this page from
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
        parts += [f"## {name}: RMS distance to 250 steps", network(run)]
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
            runs = [one for problem, one in mixtures.items() if problem.endswith(path)]
            cases = [(one[nfe]["own"][name], one[nfe]["placed"][name]) for one in runs for nfe in JUDGED]
            cases = [(of_default, of_all) for of_default, of_all in cases if any(of_all.values())]
            least = [min(map(finite, of_all.values())) for _, of_all in cases]
            worst = max((finite(d) / one for (d, _), one in zip(cases, least, strict=True)), default=math.inf)
            of_one = {
                label: max(finite(of_all[label]) / one for (_, of_all), one in zip(cases, least, strict=True))
                for label in (cases[0][1] if cases else {})
            }
            choice = min(of_one, key=lambda label: of_one[label]) if of_one else ""
            cells += [ratio(worst), f"{ratio(of_one[choice])} {choice}" if choice else ""]
        rows.append([name, *cells])
    return table(["solver", *(head for path in paths for head in (path, "best of one grid"))], rows)


def network(run: dict[str, Any]) -> str:
    parts = []
    for label, measured in run.items():
        nfes = list(measured["nfe"])
        names = measured["nfe"][nfes[0]]["own"]
        rows = [
            [name, *(str(measured["nfe"][nfe]["own"][name] or "") for nfe in nfes)]
            for name in names
            if any(measured["nfe"][nfe]["own"][name] for nfe in nfes)
        ]
        for name in measured["nfe"][nfes[0]]["placed"]:
            cells = []
            for nfe in nfes:
                ends = measured["nfe"][nfe]["placed"][name]
                least = min(ends, key=lambda one: finite(ends[one]))
                cells.append(f"{ends[least]} {least}")
            rows.append([f"{name}, best grid", *cells])
        parts += [
            f"{label} (references differ by {measured['check']}):",
            table(["solver, as it comes", *nfes], rows),
        ]
    return "\n\n".join(parts)
