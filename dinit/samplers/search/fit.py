"""Least-squares fit of a solver schedule: the times of its steps and the weights of their divided differences.

A search over discrete choices keeps the textbook weights, which are right for short steps. With few, long steps
other times and weights are better, and the distance to a run of many steps is smooth in both. Gauss-Newton steps
with finite differences need runs alone, no gradients of the network. Frankel et al. 2025 (S4S) learn weights and
times from a solver's own long runs too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dinit.diffusion import Denoiser
from dinit.samplers.grids.times import Times
from dinit.samplers.multistep.rules import Extrapolate
from dinit.samplers.multistep.unified import Unified

_ROOM = 1e-2
"""The least distance of the last time from t_min at the start, in half the log-SNR: it can then move both ways."""

Run = Callable[[Unified, Times], Tensor]


@dataclass(frozen=True)
class Schedule:
    """A schedule as a vector of numbers, (P,) float64: logs of the gaps between times, then factors on differences.

    Times are in half the log-SNR, bounded softly by that of t_min. The first time is fixed: a run starts from
    noise.

    Attributes:
        denoiser: Its process and t_min.
        first: The first time.
        start: Half the log-SNR from which the first gap is measured.
        rules: One a step, whose difference weights are replaced.
    """

    denoiser: Denoiser
    first: float
    start: float
    rules: tuple[Extrapolate, ...]

    @classmethod
    def of(
        cls, denoiser: Denoiser, rules: Sequence[Extrapolate], times: Sequence[float]
    ) -> tuple[Schedule, Tensor]:
        """The schedule and its numbers. Rules get order 4, with factor 0 on the differences that they lacked."""
        free = tuple(
            replace(rule, order=4, difference_weights=tuple(_factor(rule, j) for j in (1, 2, 3))) for rule in rules
        )
        levels = denoiser.process.scales(torch.tensor(list(times), dtype=torch.float64)).log_snr / 2
        top = denoiser.process.scales(denoiser.t_min).log_snr / 2
        room = (top - levels[1:]).clamp_min(_ROOM)
        raw = top - torch.log(torch.expm1(room))  # the inverse of softplus
        # A path without signal at its first time has no log-SNR there; the first gap is then from two below.
        start = float(levels[0]) if math.isfinite(float(levels[0])) else float(raw[0]) - 2.0
        start = min(start, float(raw[0]) - _ROOM)
        gaps = torch.diff(raw, prepend=torch.tensor([start], dtype=torch.float64)).clamp_min(_ROOM)
        factors = torch.tensor(
            [f for i, rule in enumerate(free) for f in rule.difference_weights[:i]], dtype=torch.float64
        )
        return cls(denoiser, times[0], start, free), torch.cat([gaps.log(), factors])

    def read(self, numbers: Tensor) -> tuple[Unified, Times]:
        """The sampler and its times at given numbers."""
        steps = len(self.rules)
        top = self.denoiser.process.scales(self.denoiser.t_min).log_snr / 2
        raw = self.start + numbers[:steps].exp().cumsum(0)
        levels = top - torch.nn.functional.softplus(top - raw, threshold=1e9)
        times = self.denoiser.process.time_of(2 * levels).clamp_min(self.denoiser.t_min)
        factors, rules = numbers[steps:].tolist(), []
        for i, rule in enumerate(self.rules):
            own, factors = factors[: min(i, 3)], factors[min(i, 3) :]
            rules.append(replace(rule, difference_weights=(*own, *rule.difference_weights[len(own) :])))
        return Unified(tuple(rules), "lower-order"), Times((self.first, *times.tolist()))


def _factor(rule: Extrapolate, difference: int) -> float:
    given = rule.difference_weights[difference - 1 : difference]
    return float(difference < rule.order) * (given[0] if given else 1.0)


def fit(
    denoiser: Denoiser, sampler: Unified, grid: Times, run: Run, reference: Tensor, iterations: int
) -> tuple[Unified, Times, float]:
    """A schedule of the same forms nearer to a reference, by Levenberg-Marquardt steps. Moré 1978.

    Args:
        denoiser: What is sampled from.
        sampler: The schedule's rules, all of the kind Extrapolate.
        grid: Its times.
        run: The end of a run by a sampler on times, in the shape and dtype of `reference`.
        reference: (B, C, H, W), the end of a run of many steps.
        iterations: Steps of the fit, each of one run for each number of the schedule (about four a sampling step)
            and a few more.

    Returns:
        The sampler, its times and the RMS distance to the reference.

    Raises:
        ValueError: A rule of another kind.
    """
    rules = [one for one in sampler.schedule_for(len(grid.values) - 1, True).rules if isinstance(one, Extrapolate)]
    if len(rules) < len(grid.values) - 1:
        raise ValueError("fit: all rules of the schedule must be of the kind Extrapolate")
    schedule, numbers = Schedule.of(denoiser, rules, grid.values)
    step = 1e-4 if reference.dtype == torch.float64 else 3e-3

    def residual(at: Tensor) -> Tensor:
        try:
            end = run(*schedule.read(at))
        except ValueError:  # times that rounding has brought together
            return torch.full((reference.numel(),), math.inf, dtype=torch.float64)
        return (end - reference).double().flatten().cpu() / math.sqrt(reference.numel())

    now, damping = residual(numbers), 1e-2
    for _ in range(iterations):
        columns = [(residual(numbers + step * unit) - now) / step for unit in torch.eye(len(numbers)).double()]
        slopes = torch.stack(columns).nan_to_num(0, 0, 0)
        square, pull = slopes @ slopes.T, slopes @ now
        for _ in range(6):
            scale = torch.diag(square.diagonal() + 1e-6 * square.diagonal().max() + 1e-30)
            moved = numbers - torch.linalg.solve(square + damping * scale, pull).clamp(-1, 1)
            tried = residual(moved)
            if bool(tried.norm() < now.norm()):
                numbers, now, damping = moved, tried, damping / 4
                break
            damping *= 4
        else:
            break
    sampler, grid = schedule.read(numbers)
    return sampler, grid, float(now.norm())
