"""Few-step solvers on the shipped digits models: distance to the 1,000-step solution, and KID."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from pathlib import Path

from solvers_measure import NFES, PEERS, measure, quiet, report
from solvers_ours import ours
from solvers_problems import Problem, digits_problem, start_of
from solvers_tables import Errors, head_to_head, header
from torch import Tensor

from dinit.samplers.multistep.adams import ExponentialAB
from dinit.samplers.search.solver import SolverSearch

DIGITS = ("digits-dit", "digits-dico", "digits-dic", "digits-unet", "digits-dis")
# A network takes longer than a mixture: the solvers that lead there, and some namesakes, on a few grids each.
SOLVERS: dict[str, tuple[str, ...]] = {
    "ab 3 velocity": (
        "shifted 1 to 0.03, state",
        "shifted 1 from 0.999 to 0.03, state",
        "shifted 1.4 to 0.03, state",
        "shifted 1",
    ),
    **dict.fromkeys(
        ("ab 3 velocity plain", "ab 4 velocity plain"),
        (
            "shifted 1 to 0.03, state",
            "shifted 1 from 0.999 to 0.03, state",
            "shifted 1 from 0.999 to 0.03",
            "shifted 1",
        ),
    ),
    "ab 4 velocity": ("shifted 1 to 0.03, state", "shifted 1"),
    "eab 3 velocity": ("shifted 1 to 0.03, state", "shifted 2"),
    "unipc 3": ("shifted 1 from 0.999", "shifted 2", "log-snr"),
    "dpmpp-2m": ("shifted 1 from 0.999", "shifted 2", "karras"),
    "euler": ("uniform", "shifted 2"),
    "azula vAB 3": ("rectified", "decay 0.5"),
    "azula vAB 4": ("rectified",),
    "diffusers UniPC 3": ("1.0", "linspace", "trailing", "linspace karras"),
    "diffusers DPMSolverMultistep 2M": ("1.0", "linspace", "trailing", "linspace karras"),
    "diffusers EDMDPMSolverMultistep 2M": ("karras",),
    "diffusers FlowMatchEulerDiscrete": ("1.0",),
    "k-diffusion dpmpp_2m": ("exponential", "karras 7"),
    "k-diffusion dpmpp_3m_sde": ("exponential",),
}
FOR_KID = (5, 10, 20)
TO_SEARCH = (5, 10)
SEARCH = SolverSearch(population=8, generations=0, fit=12, fits=1, seed=7)
KID_COUNT = 500


def wanted(name: str, grid: str) -> bool:
    grids = SOLVERS.get(name, ())
    if name.startswith(("azula ", "k-diffusion ")):  # with the ends that suit few steps: FROM to TO
        last = "to 0.03" if name.startswith("azula ") else "to 0.1"
        first = "100 to" not in grid
        return any(grid.startswith(f"{g} ") for g in grids) and grid.endswith(last) and first
    return grid in grids


def digits(names: Sequence[str], out: Path, jobs: int = 1) -> None:
    """Measures the shipped models and writes their report."""
    every: dict[str, Errors] = {}
    lead = [
        "64 digits of each shipped model in float32 against 1,000 steps of `eab 3 velocity` from the",
        "same noise; a few solvers and grids. KID is of 500 other digits against the training set, in the features",
        "of the shipped classifier (torch-fidelity, 100 subsets of 250); the spread over subsets follows.",
        "",
    ]
    with ProcessPoolExecutor(jobs, initializer=quiet) as pool:
        for name, (errors, rows) in zip(names, pool.map(measured, names), strict=True):
            every[name] = errors
            lead += [f"### {name}: KID", "", *rows, ""]
            print("\n".join([name, *head_to_head(errors), *rows]), flush=True)
            report(every, lead, out)


def measured(name: str) -> tuple[Errors, list[str]]:
    problem = digits_problem(name)
    errors = measure(problem, NFES, SEARCH, TO_SEARCH, wanted)
    return errors, kid_rows(name, errors)


def kid_rows(name: str, errors: Errors) -> list[str]:
    """KID of the best solver of dinit, of the best peer, and of 100 steps."""
    big = kid_problem(name)
    model, cond = big.model, big.noise
    many = ExponentialAB(3, "velocity").sample(model, cond, 100, grid="log-snr")
    rows = [*header("KID, at NFE", FOR_KID), f"| 100 steps of eab 3 velocity: {kid(many)} |" + " |" * len(FOR_KID)]
    for title, which in (("best of dinit", errors.ours), ("best peer", errors.theirs)):
        cells = []
        for nfe in FOR_KID:
            score, solver = errors.first(nfe, which)
            cells.append(f"{kid(again(big, solver, score.grid, nfe))} ({solver}, {score.grid})")
        rows.append(f"| {title} | " + " | ".join(cells) + " |")
    return rows


def kid_problem(name: str) -> Problem:
    """Other noises, more of them, and no exact end."""
    from dinit.pipelines import Pipeline

    pipeline = Pipeline.from_pretrained(name)
    model = pipeline.denoiser([i % 10 for i in range(KID_COUNT)])
    size = pipeline.backbone.config.image_size
    start = start_of(pipeline.process, (KID_COUNT, pipeline.backbone.in_channels, size, size), 4).float()
    return Problem(name, model, start, start)


def again(problem: Problem, solver: str, grid: str, nfe: int) -> Tensor:
    """The end of one solver on one grid."""
    this = lambda name, on: (name, on) == (solver, grid)  # noqa: E731
    runs = chain.from_iterable(p.peers(problem.model, problem.start, nfe, this) for p in PEERS)
    ends = chain((run.end for run in runs), (end for _, _, end in ours(problem, nfe, this)))
    return next(ends)


def kid(x0: Tensor) -> str:
    from dinit.data.digits import Digits
    from dinit.data.pixels import to_uint8
    from dinit.evaluation.features.digits import DigitsExtractor
    from dinit.evaluation.metrics.base import Settings
    from dinit.evaluation.metrics.base import measure as metrics

    real = Digits(split="train").uint8_images()
    found = metrics(
        to_uint8(x0.clamp(-1, 1)), real, DigitsExtractor(), Settings.for_counts([len(x0), len(real)], 0), ["kid"]
    )
    return f"{found['kid']:.2g} ± {found['kid_std']:.1g}"
