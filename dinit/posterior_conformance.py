"""Posterior methods by the exact posterior: every method, operator and noise, on mixtures whose posterior is known.

On the Gaussian a method that is exact shows as such. On the mixture, with modes that the measurement cannot tell
apart, methods that take x0 given x_t for a Gaussian are biased: the table has by how much.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dinit.arguments import shown
from dinit.conformance import BatchNoise, mapped
from dinit.diffusion import PROCESSES
from dinit.evaluation import Calibration, PosteriorScores, posterior_calibration, posterior_scores
from dinit.inverse import OPERATORS, POSTERIOR_SAMPLERS, LinearOperator, Measurement, PosteriorGuidance
from dinit.models import GaussianMixture
from dinit.registry import suggest
from dinit.samplers import SAMPLERS
from dinit.samplers.guidance import GUIDANCES
from dinit.specs import parse_spec

if TYPE_CHECKING:
    from rich.table import Table

SHAPE = (1, 4, 4)
PROBLEMS = ("gaussian", "mixture")
OPERATOR_SPECS: dict[str, Any] = {
    "mask": {"name": "mask", "box": (0, 2, 4, 4)},
    "downscale": {"name": "downscale", "factor": 2},
    "blur": {"name": "blur", "std": 0.7, "padding": "circular"},
}
NOISES = (0.0, 0.05)
UNDER = ("auto", "ddpm")
FULL = "mmps:iterations=16"
ORACLE, EXACT = "oracle", "exact"
MEASUREMENTS, CALIBRATED, CALIBRATION_SAMPLES = 3, 64, 15
EVALUATIONS = 40
# Above this multiple of the data's largest value a sample counts as diverged.
DIVERGED = 10.0


@dataclass(frozen=True)
class Case:
    """One entry of the table, before it is run.

    Attributes:
        problem: "gaussian" or "mixture".
        operator: A key of OPERATOR_SPECS.
        noise_std: sigma_y.
        method: A posterior guidance or posterior sampler with its options, "oracle" (the exact E[x0 | x_t, y]) or
            "exact" (exact samples).
        sampler: That the method runs under; "" for posterior samplers and exact samples.
        process: Of the noise.
        evaluations: Of the denoiser.
        samples: For each of three measurements.
    """

    problem: str
    operator: str
    noise_std: float
    method: str
    sampler: str
    process: str
    evaluations: int
    samples: int


@dataclass(frozen=True)
class Outcome:
    """What a method scored.

    Attributes:
        case: What was run.
        scores: Averages over measurements; None where the method was refused.
        calibration: Over 64 further measurements; None where the run was refused or diverged.
        note: The reason of a refusal, or that the run diverged.
    """

    case: Case
    scores: PosteriorScores | None = None
    calibration: Calibration | None = None
    note: str = ""


COLUMNS = (
    ("sW2", "sw2"),
    ("bias", "mean_err_white"),
    ("variance", "trace_ratio"),
    ("white var.", "white_trace"),
    ("weights", "weight_err"),
    ("data", "data"),
)
_SHORTER = {"variance": "var.", "white var.": "white", "weights": "modes"}  # headings on a terminal


@dataclass(frozen=True)
class PosteriorReport:
    """Scores of all runs, with those of exact samples first in each case."""

    outcomes: tuple[Outcome, ...]

    @property
    def passed(self) -> bool:
        """Whether what is exact by mathematics was so: the exact posterior's denoiser under `auto`."""
        return bool(self.outcomes) and not self.failures()

    def failures(self) -> list[Outcome]:
        """Runs of the exact posterior's denoiser under `auto` that are off: their variance, or their distance."""
        wrong = []
        for one in self.outcomes:
            if (one.case.method, one.case.sampler) == (ORACLE, "auto"):
                best = self.exact(one.case)
                off = one.scores is None or abs(one.scores.trace_ratio - 1) > 0.2
                far = best is not None and one.scores is not None and not one.scores.sw2 < 1.7 * best.sw2
                wrong += [one] * (off or far)
        return wrong

    def exact(self, case: Case) -> PosteriorScores | None:
        """Scores of exact samples of a case's posterior; None where they were not drawn."""
        place = (case.problem, case.operator, case.noise_std)
        for one in self.outcomes:
            if one.case.method == EXACT and (one.case.problem, one.case.operator, one.case.noise_std) == place:
                return one.scores
        return None

    def rows(self) -> list[list[str]]:
        """The table as text: a heading, and a row for every run."""
        heading = ["problem", "operator", "noise", "method", "sampler", *(name for name, _ in COLUMNS)]
        rows = [[*heading, "chi2", "spread", ""]]
        for one in self.outcomes:
            case, scores, ranks = one.case, one.scores, one.calibration
            place = [case.problem, case.operator, f"{case.noise_std:g}", case.method, case.sampler]
            found = [_number(getattr(scores, name)) if scores else "" for _, name in COLUMNS]
            rows.append([*place, *found, *(_number(v) if ranks else "" for v in _pair(ranks)), one.note])
        return rows

    def table(self) -> Table:
        """The table for a terminal, a section for every problem, operator and noise, which stand above its runs."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        caption = (
            "sW2: sliced Wasserstein distance to exact samples, in standard deviations of the posterior. bias: "
            "error of the mean, whitened. var., white: variance over the posterior's, total and whitened. "
            "modes: error of their weights. data: root mean square of (A x - y) / noise. chi2, spread: of "
            "ranks; both are 1 for exact samples. Problem, operator and noise stand above their "
            "runs. The rows `exact` have what that many exact samples score."
        )
        heading, *rows = self.rows()
        noted = any(row[-1] for row in rows)
        columns = heading[3:] if noted else heading[3:-1]
        table = Table(title="posterior", caption=caption, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for column in columns:
            width = (
                max((len(place) for row in rows for place in row[:2]), default=0) if column == "method" else None
            )
            table.add_column(
                _SHORTER.get(column, column),
                justify="right" if column in dict(COLUMNS) else "left",
                min_width=width,
            )
        before: list[str] = []
        for row in rows:
            if row[:3] != before:
                before = row[:3]
                table.add_section()
                table.add_row(before[0], style="bold")
                table.add_row(before[1], before[2], style="bold")
            table.add_row(*(_short(cell) for cell in row[3 : 3 + len(columns)]))
        return table

    def markdown(self) -> str:
        """The table in Markdown."""
        heading, *rows = ["| " + " | ".join(row) + " |" for row in self.rows()]
        rule = "|" + "---|" * (heading.count("|") - 1)
        return "\n".join([heading, rule, *rows])


def _short(cell: str) -> str:
    """A number in few letters: what is next to 0 as 0."""
    small = "e-" in cell or cell.startswith("0.000")
    return "0" if small and cell[0].isdigit() else cell


def _pair(ranks: Calibration | None) -> tuple[float, float]:
    return (math.nan, math.nan) if ranks is None else (ranks.chi2, ranks.spread)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0e}"


def posterior_methods() -> list[str]:
    """Names of all posterior guidances, then of all posterior samplers."""
    guidances = [name for name in GUIDANCES.names() if issubclass(GUIDANCES[name], PosteriorGuidance)]
    return [*guidances, *POSTERIOR_SAMPLERS.names()]


def verify_posterior(
    methods: Sequence[str] | None = None,
    samplers: Sequence[str] | None = None,
    processes: Sequence[str] | None = None,
    quick: bool = True,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> PosteriorReport:
    """The table of posterior methods.

    Args:
        methods: Names of posterior guidances and posterior samplers, with or without options; None is all.
        samplers: Names of samplers for the guidances; None is auto, which is deterministic, and ddpm.
        processes: Names of noise processes; None is edm.
        quick: 128 samples for each measurement, in place of 256, and 40 evaluations, in place of 50.
        workers: Number of processes that run cases; with more than one each imports dinit itself.
        progress: Is called with the number of finished runs, and that of all.

    Raises:
        UnknownName: A sampler or process that is not registered.
        ValueError: A method that is no posterior guidance and no posterior sampler.
    """
    names = [*posterior_methods(), FULL] if methods is None else list(methods)
    under = list(UNDER if samplers is None else samplers)
    for name in under:
        SAMPLERS.resolve(name)
    paths = [PROCESSES.resolve(name)[0] for name in processes or ("edm",)]
    runs = [(EXACT, ""), *((ORACLE, one) for one in under)]
    for name in names:
        runs += [(name, one) for one in (under if _is_guidance(name) else [""])]
    evaluations, samples = (EVALUATIONS, 128) if quick else (50, 256)
    cases = [
        Case(problem, operator, noise, method, sampler, path, evaluations, samples)
        for path in paths
        for problem in PROBLEMS
        for operator in OPERATOR_SPECS
        for noise in NOISES
        for method, sampler in runs
        # There the posterior is a point.
        if (operator, noise) != ("blur", 0.0)
    ]
    outcomes = []
    with mapped(workers) as mapping:
        for done, outcome in enumerate(mapping(run_case, cases), start=1):
            outcomes.append(outcome)
            if progress is not None:
                progress(done, len(cases))
    return PosteriorReport(tuple(outcomes))


def _is_guidance(method: str) -> bool:
    """Whether a method is a posterior guidance; a posterior sampler is none. ValueError for what is neither."""
    name = method.partition(":")[0]
    if name in POSTERIOR_SAMPLERS:
        return False
    if name in GUIDANCES and issubclass(GUIDANCES[name], PosteriorGuidance):
        return True
    raise ValueError(f"{name!r} is no posterior method{suggest(name, posterior_methods())}")


@cache
def problem(name: str) -> GaussianMixture:
    """A prior on images of 1x4x4.

    Args:
        name: "gaussian": one component, of smooth images. "mixture": four of them, in pairs that differ in the sign
            of a checkerboard on the right half, which the operators hardly see or do not see at all.
    """
    generator = torch.Generator().manual_seed(5)
    n, components = math.prod(SHAPE), 1 if name == "gaussian" else 4
    factors = torch.randn(components, n, 4, generator=generator, dtype=torch.float64) * 0.35
    means = torch.randn(components, n, generator=generator, dtype=torch.float64) * 0.3
    if components > 1:
        rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
        fine = ((rows + columns) % 2 * 2 - 1) * (columns >= 2)
        sign = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None]
        means = means[[0, 0, 1, 1]] + 0.6 * sign * fine.flatten()
        factors = factors[[0, 0, 1, 1]]
    diagonal = torch.full((components, n), 0.05, dtype=torch.float64)
    weights = torch.tensor([0.35, 0.15, 0.2, 0.3], dtype=torch.float64)[:components]
    return GaussianMixture.low_rank(weights, means, diagonal, factors, SHAPE)


@dataclass(frozen=True)
class _Known:
    """Truths, measurements and posteriors of a problem under an operator and noise."""

    operator: LinearOperator
    truth: Tensor
    y: Tensor
    posteriors: GaussianMixture


@cache
def _known(name: str, operator_name: str, noise_std: float) -> _Known:
    prior, operator = problem(name), OPERATORS.create(OPERATOR_SPECS[operator_name])
    assert isinstance(operator, LinearOperator), "all in OPERATOR_SPECS are"
    generator = torch.Generator().manual_seed(9)
    truth = prior.sample(MEASUREMENTS + CALIBRATED, generator)
    y = operator.apply(truth)
    y = y + noise_std * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    return _Known(operator, truth, y, prior.posterior(operator, y, noise_std))


def run_case(case: Case) -> Outcome:
    """Samples of a case, and their scores.

    Args:
        case: What to run.
    """
    known = _known(case.problem, case.operator, case.noise_std)
    # Rows of the batch: `samples` of each of the first measurements, then some of each of the others.
    counts = torch.tensor([case.samples] * MEASUREMENTS + [CALIBRATION_SAMPLES] * CALIBRATED)
    rows = torch.arange(len(counts)).repeat_interleave(counts)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few steps
            found = _samples(case, known, rows)
    except ValueError as refusal:
        return Outcome(case, note=f"refused: {refusal}")
    largest, allowed = float(found.abs().max()), DIVERGED * float(known.truth.abs().max())
    note = "" if largest <= allowed else f"diverged: values up to {largest:.1e}"
    a = known.operator.matrix(SHAPE)
    scores = [
        posterior_scores(found[rows == i], known.posteriors.row(i), a, known.y[i], case.noise_std, seed=i)
        for i in range(MEASUREMENTS)
    ]
    rest = found[rows >= MEASUREMENTS].unflatten(0, (CALIBRATED, CALIBRATION_SAMPLES))
    further = GaussianMixture(
        known.posteriors.weights[MEASUREMENTS:],
        known.posteriors.means[MEASUREMENTS:],
        known.posteriors.covariances,
        SHAPE,
    )
    average = PosteriorScores.average(scores)
    if note or average.finite != 1:
        return Outcome(case, average, None, note)
    return Outcome(case, average, posterior_calibration(rest, known.truth[MEASUREMENTS:], further))


def _samples(case: Case, known: _Known, rows: Tensor) -> Tensor:
    posteriors = known.posteriors
    if case.method == EXACT:
        drawn = posteriors.sample(case.samples, torch.Generator().manual_seed(17))
        place = torch.arange(len(rows)) % case.samples
        return drawn[rows, place]
    process = PROCESSES.create(case.process)
    prior, noise = problem(case.problem).denoiser(process), torch.Generator().manual_seed(21)
    x = torch.randn(len(rows), *SHAPE, generator=noise, dtype=torch.float64)
    seen = Measurement(known.operator, known.y[rows], case.noise_std)
    if case.method == ORACLE:
        law = GaussianMixture(posteriors.weights[rows], posteriors.means[rows], posteriors.covariances, SHAPE)
        sampler, denoiser = SAMPLERS.create(case.sampler), law.denoiser(process)
    elif _is_guidance(case.method):
        sampler = SAMPLERS.create(case.sampler)
        denoiser = GUIDANCES.create(_with(case.method, seen)).wrap(prior)
    else:
        sampler, denoiser = POSTERIOR_SAMPLERS.create(_with(case.method, seen)), prior
    steps = max(1, case.evaluations // sampler.claims().nfe_per_step)
    return sampler.sample(denoiser, x, steps, noise_source=BatchNoise(3))


def _with(method: str, measurement: Measurement) -> Mapping[str, Any]:
    options = parse_spec(method)
    if "measurement" in options:
        raise ValueError(f"the measurement is the table's, got {shown(method)}")
    return {**options, "measurement": measurement}
