"""Table of a run: the grid and the weights of every step, measured on unit inputs."""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dinit.diffusion import PROCESSES, Condition, Denoised, Denoiser, Process, Scales
from dinit.samplers.points import GridLike

if TYPE_CHECKING:  # `Sampler.describe` imports this module
    from dinit.samplers.base import Sampler, Step

_TINY = 1e-12  # what float64 leaves of a weight that is 0


@dataclass(frozen=True)
class Weights:
    """One step of a linear solver: x_s = x_t * state + sum of x0[i] * (the i-th posterior mean) + noise * z.

    The representation is unique: a solver that keeps eps or velocities is rewritten in x_t and posterior means.

    Attributes:
        state: The weight of x_t.
        x0: The weights of the run's posterior means so far, the latest first, without the zeros at the end. A step
            of several evaluations has several, at its inner states.
        noise: Standard deviation of what the step's draws add.
    """

    state: float
    x0: tuple[float, ...]
    noise: float


@dataclass(frozen=True)
class Row:
    """A step of the table.

    Attributes:
        t: Time of the step's start.
        alpha: Its signal scale.
        sigma: Its noise scale.
        log_snr: Its log signal-to-noise ratio, log(alpha² / sigma²).
        nfe: Network evaluations so far.
        weights: Of the step; None where it is not linear.
    """

    t: float
    alpha: float
    sigma: float
    log_snr: float
    nfe: int
    weights: Weights | None


@dataclass(frozen=True)
class Description:
    """Table of a run, as `Sampler.describe` returns it. `print` and a notebook show it as a table.

    Attributes:
        title: Sampler, process, and cost.
        rows: One a step.
    """

    title: str
    rows: tuple[Row, ...]

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headings, and the cells of every row, as text."""
        linear = any(row.weights for row in self.rows)
        head = ["step", "t", "alpha", "sigma", "log-SNR", "NFE"] + [
            "on x_t",
            "on x0, latest first",
            "noise",
        ] * linear
        body = []
        for index, row in enumerate(self.rows):
            line = [str(index), *(f"{v:.4f}" for v in (row.t, row.alpha, row.sigma, row.log_snr)), str(row.nfe)]
            if linear and row.weights:
                w = row.weights
                line += [f"{w.state:.4f}", " ".join(f"{v:+.4f}" for v in w.x0), f"{w.noise:.4f}"]
            body.append(line + [""] * (len(head) - len(line)))
        return head, body

    def __str__(self) -> str:
        head, body = self.cells()
        widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
        lines = ["  ".join(cell.rjust(w) for cell, w in zip(line, widths, strict=True)) for line in (head, *body)]
        return "\n".join([self.title, *lines])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, body = self.cells()
        rows = ["".join(f"<th>{html.escape(cell)}</th>" for cell in head)]
        rows += ["".join(f"<td>{html.escape(cell)}</td>" for cell in line) for line in body]
        table = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><caption>{html.escape(self.title)}</caption>{table}</table>"


def describe(
    sampler: Sampler, process: Process | str, steps: int | None = None, grid: GridLike | None = None
) -> Description:
    """The table of a run. Arguments and errors as `Sampler.describe`."""
    path: Process = PROCESSES.create(process)
    # A first run counts the unit inputs, the second has one sample for each, and one that mixes them all.
    count = _Inputs(size=1)
    _run(sampler, path, count, steps, grid)
    inputs = _Inputs(size=1 + len(count.places))
    trajectory = _run(sampler, path, inputs, steps, grid)
    linear = sampler.claims().cost_depends_on != "state" and all(inputs.adds_up(step.x_s) for step in trajectory)
    rows = []
    for step in trajectory:
        k = path.scales(step.t).floats
        weights = _weights(step, inputs) if linear else None
        rows.append(Row(step.t, k.alpha, k.sigma, k.log_snr, step.nfe, weights))
    return Description(f"{sampler} on {path}, {len(rows)} steps, {rows[-1].nfe} NFE", tuple(rows))


@dataclass
class _Inputs:
    """Unit inputs of a linear run: the start, each posterior mean and each draw, one sample of the batch for each.

    The last sample of the batch gets all of them, by fixed weights, which shows whether the run is linear.

    Attributes:
        size: Number of inputs.
        places: Index of an input in the batch, in order of its first use.
        calls: Evaluations so far.
    """

    size: int
    places: dict[tuple[str, int], int] = field(default_factory=dict)
    calls: int = 0

    def mixture(self) -> Tensor:
        return torch.cos(torch.arange(self.size, dtype=torch.float64) * 2.4) + 0.1

    def unit(self, place: int) -> Tensor:
        """(size + 1, 1, 1, 1): one for the sample of this input, zero for those of the others."""
        x = torch.zeros(self.size + 1, 1, 1, 1, dtype=torch.float64)
        if place < self.size:
            x[place] = 1.0
            x[-1] = self.mixture()[place]
        return x

    def next(self, key: tuple[str, int]) -> Tensor:
        place = self.places.setdefault(key, len(self.places) + 1)
        return self.unit(place)

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        """A draw, in place of a noise source."""
        return self.next((stream, number))

    def posterior_mean(self) -> Tensor:
        self.calls += 1
        return self.next(("x0", self.calls - 1))

    def adds_up(self, x: Tensor) -> bool:
        """Whether the last sample is the sum of the others by its weights; x (size + 1, 1, 1, 1)."""
        parts = x[:-1].flatten() * self.mixture()
        return bool((parts.sum() - x[-1].sum()).abs() <= 1e-9 * (1 + parts.abs().sum()))


class _Probe(Denoiser):
    """A denoiser whose posterior means are the next unit inputs. Its learned variance is the lower bound."""

    num_classes = 1
    learns_variance = True

    def __init__(self, process: Process, inputs: _Inputs) -> None:
        self.process, self.t_min, self.inputs = process, process.t_min, inputs

    def embed(self, labels: Tensor) -> Tensor:
        return torch.zeros(len(labels), 1)

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        return Denoised(x_t, self.inputs.posterior_mean(), self.scales(t).like(x_t), torch.zeros_like(x_t))


def _run(
    sampler: Sampler, process: Process, inputs: _Inputs, steps: int | None, grid: GridLike | None
) -> list[Step]:
    probe, start = _Probe(process, inputs), inputs.unit(0)
    return list(sampler.iterate(probe, start, steps, noise_source=inputs, grid=sampler.own_grid or grid))


def _weights(step: Step, inputs: _Inputs) -> Weights:
    """The step's own weights, from x_t and x_s as combinations of the run's inputs.

    The start and earlier draws reach x_s through x_t alone, so any of them gives the weight of x_t. Where alpha is
    0, nothing of the start may be left after one step; an earlier draw then takes its place.
    """
    x_t, x_s = step.x_t.flatten()[:-1], step.x_s.flatten()[:-1]
    carried = [0, *(place for (kind, _), place in inputs.places.items() if kind != "x0")]
    pivot = max(carried, key=lambda place: abs(float(x_t[place])))
    state = float(x_s[pivot] / x_t[pivot])
    rest = x_s - state * x_t
    means = [
        float(rest[place]) for (kind, number), place in inputs.places.items() if kind == "x0" and number < step.nfe
    ]
    while means and abs(means[0]) < _TINY:  # evaluations that the step no longer uses
        means.pop(0)
    drawn = [float(rest[place]) for (kind, _), place in inputs.places.items() if kind != "x0"]
    noise = float(torch.tensor(drawn, dtype=torch.float64).square().sum().sqrt()) if drawn else 0.0
    return Weights(state, tuple(reversed(means)), noise if noise > _TINY else 0.0)
