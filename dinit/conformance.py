"""Conformance of samplers: checks against closed forms that every registered sampler must pass.

Four checks, on data whose marginals are known, for every entry of the registries:
order         slope of the error to the exact probability-flow solution over step counts (deterministic)
distribution  mean, standard deviation and component weights of 20,000 samples of a mixture (stochastic)
grids         on every time grid the error shrinks as steps are added
pairs         on every grid, every parameterization gives the same samples, or is refused with a reason
"""

from __future__ import annotations

import math
import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dinit.diffusion import (
    PARAMETERIZATIONS,
    PROCESSES,
    Condition,
    Denoised,
    Denoiser,
    Parameterization,
    Process,
    Scales,
    WrappedDenoiser,
)
from dinit.diffusion.condition import SupportsNormal
from dinit.diffusion.parameterization import check_pair
from dinit.models.analytic import GaussianDenoiser, MixtureDenoiser
from dinit.samplers import GRIDS, SAMPLERS, Sampler, TimeGrid
from dinit.samplers.points import NoisyEndWarning

if TYPE_CHECKING:
    from rich.table import Table

MEAN, STD = 0.3, 0.5
T_START, T_END = 0.95, 0.05
ORDER_STEPS = (32, 64, 128, 256, 512)
ORDER_TOLERANCE = 0.35

Named = list[tuple[str, TimeGrid]]


@dataclass(frozen=True)
class Check:
    """Outcome of one check.

    Attributes:
        sampler: its name.
        process: name of the process.
        check: "order", "distribution", "grids" or "pairs".
        status: "pass", "FAIL", or "refused" (a ValueError with the reason, which counts as passed).
        figure: what was measured, or the reason.
    """

    sampler: str
    process: str
    check: str
    status: str
    figure: str


@dataclass(frozen=True)
class ConformanceReport:
    """Outcomes of all checks of a run."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed and something was checked."""
        return bool(self.checks) and all(c.status != "FAIL" for c in self.checks)

    def count(self, status: str) -> int:
        """How many checks have a status."""
        return sum(c.status == status for c in self.checks)

    def table(self) -> Table:
        """One row for each sampler and process: those that failed first, then refused ones, then the others."""
        from rich.table import Table

        caption = (
            "order: measured/claimed, against exact probability-flow solutions. moments: of a mixture's samples. "
            "worst grid: error at 64 steps. pairs: how many parameterizations give the same samples on every grid."
        )
        table = Table(title="conformance", caption=caption)
        for column in ("sampler", "process", "order or moments", "worst grid", "pairs"):
            table.add_column(column, no_wrap=column in ("sampler", "process"))
        rows: dict[tuple[str, str], dict[str, str]] = {}
        rank: dict[tuple[str, str], int] = {}
        for c in self.checks:
            colour = {"pass": "green", "FAIL": "bold red", "refused": "yellow"}[c.status]
            mark = "" if c.status == "pass" else f"{c.status}: "
            column, row = "first" if c.check in ("order", "distribution") else c.check, (c.sampler, c.process)
            rows.setdefault(row, {})[column] = f"[{colour}]{mark}{c.figure}[/]"
            rank[row] = min(rank.get(row, 2), ("FAIL", "refused", "pass").index(c.status))
        for row in sorted(rows, key=lambda one: rank[one]):  # the order of the registries within a rank
            table.add_row(*row, *(rows[row].get(column, "") for column in ("first", "grids", "pairs")))
        return table

    def failures(self) -> ConformanceReport:
        """Of the samplers and processes with a failure alone."""
        wrong = {(c.sampler, c.process) for c in self.checks if c.status == "FAIL"}
        return ConformanceReport(tuple(c for c in self.checks if (c.sampler, c.process) in wrong))


def verify(
    samplers: Sequence[str] | None = None,
    quick: bool = False,
    processes: Sequence[str] | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> ConformanceReport:
    """Run the checks.

    Args:
        samplers: names of samplers; None is all.
        quick: a fifth of the samples for the distribution check, with wider bounds to match, half the steps of the
            order check, and every third time grid, in turn over the processes.
        processes: names of processes; None is all.
        workers: number of processes that check; with more than one each imports dinit itself, so that a sampler
            that is registered by a program of yours needs 1.
        progress: is called with the number of checked pairs of sampler and process, and that of all.

    Raises:
        UnknownName: a sampler or process that is not registered.
    """
    made = [SAMPLERS.resolve(name)[0] for name in (SAMPLERS.names() if samplers is None else samplers)]
    paths = [PROCESSES.resolve(name)[0] for name in (PROCESSES.names() if processes is None else processes)]
    pairs = [(sampler, path, quick) for sampler in made for path in paths]
    checks: list[Check] = []
    with mapped(workers) as mapping:
        for done, found in enumerate(mapping(_check_pair_of_names, pairs), start=1):
            checks += found
            if progress is not None:
                progress(done, len(pairs))
    return ConformanceReport(tuple(checks))


@contextmanager
def mapped(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """`map`, by several processes of one thread each where workers is more than one.

    Args:
        workers: At least 1; with more than one each imports dinit itself.
    """
    if workers == 1:
        yield map
        return
    # Not forked: threads of torch's operators do not survive that.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(cancel_futures=True)


def _check_pair_of_names(pair: tuple[str, str, bool]) -> list[Check]:
    sampler, process, quick = pair
    return list(_checks((sampler, SAMPLERS.create(sampler)), (process, PROCESSES.create(process)), quick))


def _checks(named: tuple[str, Sampler], path: tuple[str, Process], quick: bool) -> Iterator[Check]:
    name, sampler = named
    process_name, process = path
    place = PROCESSES.names().index(process_name)
    third = (place + place // 3) % 3  # so that every third process has the others' grids
    grids = _grids()[third::3] if quick else _grids()
    if sampler.stochastic:
        yield _guarded(name, process_name, "distribution", check_distribution, sampler, process, quick)
    else:
        yield _guarded(name, process_name, "order", check_order, sampler, process, quick)
    yield _guarded(name, process_name, "grids", check_grids, sampler, process, grids)
    yield _guarded(name, process_name, "pairs", check_pairs, sampler, process, grids)


def _guarded(sampler: str, process: str, check: str, function: Any, *args: Any) -> Check:
    try:
        ok, figure = function(*args)
    except ValueError as refusal:
        return Check(sampler, process, check, "refused", str(refusal))
    return Check(sampler, process, check, "pass" if ok else "FAIL", figure)


def check_order(sampler: Sampler, process: Process, quick: bool = False) -> tuple[bool, str]:
    """Check that the slope of the log error over log steps is the claimed order."""
    measured, _ = measured_order(sampler, process, ORDER_STEPS[:4] if quick else ORDER_STEPS)
    claimed = sampler.claims().order
    if measured <= claimed - ORDER_TOLERANCE:  # a high order shows at fine steps only
        measured, _ = measured_order(sampler, process, [4 * n for n in ORDER_STEPS[:4]])
    return measured > claimed - ORDER_TOLERANCE, f"order {measured:.2f}/{claimed}"


def measured_order(
    sampler: Sampler, process: Process, steps: Sequence[int] = ORDER_STEPS, t_start: float = T_START
) -> tuple[float, float]:
    """Order, and error at the most steps, against the exact flow of Gaussian data, on times equally spaced in t.

    The order is a least-squares slope over the step counts whose error is clear of float64 rounding.
    """
    exact = GaussianDenoiser(process, MEAN, STD, (1, 2, 2))
    x = _noise(8).double() * process.prior_std(process.scales(t_start))
    end = exact.flow(x, t_start, T_END)
    points = []
    for n in steps:
        grid = torch.linspace(t_start, T_END, n + 1, dtype=torch.float64)
        found = sampler.sample(exact, x, grid=grid, initial_state=x, end="state")
        points.append((math.log(n), math.log(max(float((found - end).abs().max()), 1e-300))))
    used = [(a, b) for a, b in points if b > math.log(1e-12)] or points
    if len(used) < 2:
        return math.inf, math.exp(points[-1][1])
    a, b = (torch.tensor(v, dtype=torch.float64) for v in zip(*used, strict=True))
    slope = ((a - a.mean()) * (b - b.mean())).sum() / ((a - a.mean()) ** 2).sum()
    return -float(slope), math.exp(points[-1][1])


def two_component_mixture(process: Process) -> MixtureDenoiser:
    """Mixture of two components in two dimensions with correlated coordinates; weights 0.3 and 0.7."""
    means = torch.tensor([[-0.6, 0.5], [0.6, -0.2]], dtype=torch.float64).reshape(2, 1, 1, 2)
    variances = torch.tensor([[0.04, 0.09], [0.09, 0.04]], dtype=torch.float64).reshape(2, 1, 1, 2)
    return MixtureDenoiser(process, means, variances, torch.tensor([0.3, 0.7]))


def check_distribution(sampler: Sampler, process: Process, quick: bool) -> tuple[bool, str]:
    """Check mean, covariance and weights of a mixture's samples, and the standard deviation of a Gaussian's.

    Bounds are five standard errors and a step bias of weak order 1. The Gaussian detects wrong noise by the spread
    within a component, which the covariance of a mixture hides.
    """
    count, steps = (4_000, 150) if quick else (20_000, 400)
    mixture = two_component_mixture(process)
    found = sampler.sample(mixture, _noise(count, (1, 1, 2)).double(), steps, noise_source=BatchNoise(7)).reshape(
        count, 2
    )
    mean, cov = mixture_moments(mixture)
    mean_error = float(((found.mean(0) - mean) / cov.diag().sqrt()).abs().max())
    cov_error = float(((found.T.cov() - cov) / cov.diag().max()).abs().max())
    weight_error = abs(float((found[:, 0] > 0).double().mean()) - right_weight(mixture))
    exact = GaussianDenoiser(process, MEAN, STD, (1, 2, 2))
    spread = sampler.sample(exact, _noise(count // 2).double(), steps, noise_source=BatchNoise(8)).std()
    std_error = abs(float(spread) / STD - 1)
    sampling, bias = 5 / math.sqrt(count), 4 / steps
    ok = max(mean_error, cov_error, weight_error) < sampling + bias and std_error < sampling / 2 + 2 * bias
    worst = max(mean_error, cov_error, weight_error, std_error)
    return ok, f"moments ±{worst:.1%}"


def mixture_moments(mixture: MixtureDenoiser) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of the data."""
    w, mu, var = mixture.weights, mixture.means.flatten(1), mixture.variances.flatten(1)
    mean = (w[:, None] * mu).sum(0)
    second = torch.einsum("k,ki,kj->ij", w, mu, mu) + torch.diag((w[:, None] * var).sum(0))
    return mean, second - torch.outer(mean, mean)


def right_weight(mixture: MixtureDenoiser) -> float:
    """Probability that the first coordinate is positive."""
    w, mu, std = mixture.weights, mixture.means.flatten(1)[:, 0], mixture.variances.flatten(1)[:, 0].sqrt()
    return float((w * torch.special.ndtr(mu / std)).sum())


def check_grids(sampler: Sampler, process: Process, grids: Named | None = None) -> tuple[bool, str]:
    """Check that four times the steps lower the error on every grid (None: all); the figure is that of 64 steps."""
    worst, worst_name, ok = 0.0, "none", True
    for name, grid in grids or _grids():
        coarse, fine = (_grid_error(sampler, process, grid, n) for n in (16, 64))
        if fine is None:  # the driver has warned its caller
            continue
        floor = 0.05 if sampler.stochastic else 0.01  # sampling error of stochastic samplers
        ok = ok and (fine < floor or fine < 0.75 * (coarse or math.inf))
        if fine > worst:
            worst, worst_name = fine, name
    return ok, f"{worst:.3f} {worst_name}"


def _grids() -> Named:
    """Every registered grid that takes any number of steps; one of fixed times cannot be refined."""
    made = []
    for name in GRIDS:
        with suppress(ValueError):
            made.append((name, GRIDS.create(name)))
    return made


def _grid_error(sampler: Sampler, process: Process, grid: Any, steps: int) -> float | None:
    """Error at the end of a run on a grid; None where the driver warned that the grid is too coarse."""
    exact = GaussianDenoiser(process, MEAN, STD, (1, 2, 2))
    noise = _noise(4096 if sampler.stochastic else 64).double()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trajectory = list(sampler.iterate(exact, noise, steps, grid=grid, noise_source=BatchNoise(3)))
    if any(issubclass(one.category, NoisyEndWarning) for one in caught):
        return None
    start, found = trajectory[0], trajectory[-1].x_s
    if sampler.stochastic:
        return max(abs(float(found.mean()) - MEAN), abs(float(found.std()) - STD))
    return float((found - exact.flow(start.x_t, start.t, 0.0)).abs().max())


def check_pairs(sampler: Sampler, process: Process, grids: Named | None = None) -> tuple[bool, str]:
    """Check that every parameterization gives the same samples on every grid (None: all), unless it is singular.

    One run covers all of them: each has its own part of the batch, from the same noise.
    """
    exact = GaussianDenoiser(process, MEAN, STD, (1, 2, 2))
    regular = []
    for name in PARAMETERIZATIONS:
        with suppress(ValueError):
            check_pair(process, PARAMETERIZATIONS.create(name))
            regular.append(PARAMETERIZATIONS.create(name))
    parts = 1 + len(regular)
    noise = _noise(16).double().repeat(parts, 1, 1, 1)
    apart = []
    for _, grid in grids or _grids():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # six steps are coarse on purpose
            denoiser = RoundTripDenoiser(exact, regular)
            found = sampler.sample(denoiser, noise, 6, grid=grid, noise_source=RepeatedNoise(BatchNoise(5), parts))
        exact_part, *read = found.chunk(parts)
        apart += [(part - exact_part).abs().max() for part in read]
    worst = float(torch.stack(apart).max())  # NaN where any is
    refused = len(PARAMETERIZATIONS) - len(regular)
    return worst < 1e-6, f"{len(regular)} to {worst:.0e}" + (f", {refused} refused" if refused else "")


class RoundTripDenoiser(WrappedDenoiser):
    """An exact denoiser whose predictions are written as network outputs and read back, as perfect networks give.

    Args:
        inner: The exact denoiser.
        parameterizations: The batch is in 1 + len(parameterizations) equal parts: the first is left as it is, each
            of the others goes through a parameterization of its own.
    """

    def __init__(self, inner: Denoiser, parameterizations: Sequence[Parameterization]) -> None:
        super().__init__(inner)
        self.parameterizations = parameterizations

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        d = self.inner(x_t, t, cond)
        first, *others = d.parts(1 + len(self.parameterizations))
        read = [first.x0]
        for part, parameterization in zip(others, self.parameterizations, strict=True):
            output = parameterization.target(part.x0, part.eps, part.scales)
            read.append(parameterization.posterior_mean(output, part.x_t, part.scales))
        return Denoised(x_t, torch.cat(read), d.scales)


@dataclass(frozen=True)
class RepeatedNoise:
    """Noise source with the same draws for each of `parts` equal parts of a batch, a SupportsNormal."""

    noise_source: SupportsNormal
    parts: int

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        """Draws (B, ...) of like's shape."""
        one = self.noise_source.normal(stream, number, like[: len(like) // self.parts])
        return one.repeat(self.parts, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class BatchNoise:
    """Noise source with one draw for the whole batch, a SupportsNormal: thousands of samples need no key each."""

    seed: int

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        """Draws (B, ...) of like's shape, a function of (seed, number)."""
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + number)
        # Float64 draws take more than three times as long.
        return torch.randn(like.shape, generator=generator).to(like.dtype)


def _noise(count: int, shape: tuple[int, ...] = (1, 2, 2)) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(11))
