"""Linear combinations of a run's saved weights, and the search for the best one (LCSC).

Liu et al. 2024, "Linear Combination of Saved Checkpoints Makes Consistency and Diffusion Models Better",
arXiv:2404.02241: coefficients that sum to 1 and may be negative, found by an evolutionary search on the metric
itself, beat the exponential averages that are among them. Our search is differential evolution (Storn & Price
1997), whose steps are differences of members and so keep the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from dinit.training.averaging.snapshots import list_snapshots
from dinit.training.run.checkpoint import list_checkpoints


@dataclass(frozen=True)
class Search:
    """Settings of the search. evaluations: of the metric, at least 1. population: members kept, at least 4.

    step: factor on differences of members, about 0.5. mutation: standard deviation of normal noise of sum zero,
    which shrinks as 1 - done / evaluations. ValueError for what is out of range.
    """

    evaluations: int = 200
    population: int = 12
    step: float = 0.6
    mutation: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("evaluations", 1), ("population", 4)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        if self.step <= 0 or self.mutation < 0:
            raise ValueError(f"step must be positive and mutation not negative, got {self.step}, {self.mutation}")


@dataclass
class Found:
    """The result. coefficients: the best, float64, sum 1. score: its metric. tried: every (coefficients, score)."""

    coefficients: Tensor
    score: float
    tried: list[tuple[Tensor, float]] = field(default_factory=list)


def search(metric: Callable[[Tensor], float], count: int, how: Search | None = None) -> Found:
    """The coefficients (count,) of the lowest metric. A pure function of the metric and the search's seed.

    It starts from the newest weights, plain averages of the newest ones and exponential averages, so its result is
    no worse than any of these that the evaluations suffice for. ValueError for a metric that is never finite.
    """
    how = how or Search()
    generator = torch.Generator().manual_seed(how.seed)
    found = Found(torch.empty(0), float("inf"))
    members: list[tuple[Tensor, float]] = []

    def score(coefficients: Tensor) -> float:
        coefficients = coefficients + (1 - coefficients.sum()) / count  # rounding moves the sum off 1
        value = float(metric(coefficients))
        value = value if value == value else float("inf")
        found.tried.append((coefficients, value))
        if value < found.score:
            found.coefficients, found.score = coefficients, value
        return value

    for start in _starts(count, how, generator)[: how.evaluations]:
        members.append((start, score(start)))
    while len(found.tried) < how.evaluations:
        left = 1 - len(found.tried) / how.evaluations
        place = int(torch.randint(len(members), (), generator=generator))
        best = min(members, key=lambda member: member[1])[0]
        child = _child([member for member, _ in members], place, best, how, left, generator)
        value = score(child)
        if value <= members[place][1]:
            members[place] = (child, value)
    if not found.coefficients.numel():
        raise ValueError(f"the metric was not finite for any of {len(found.tried)} combinations")
    return found


def _starts(count: int, how: Search, generator: torch.Generator) -> list[Tensor]:
    """(population,) members of (count,), oldest weights first: the newest, averages, and these with noise."""
    age = torch.arange(count - 1, -1, -1, dtype=torch.float64)
    starts = [(age < newest).double() for newest in sorted({1, max(count // 2, 1), count})]
    starts += [decay**age for decay in (0.5, 0.8)]
    starts = [start / start.sum() for start in starts][: how.population]
    while len(starts) < how.population:
        kept = starts[int(torch.randint(len(starts), (), generator=generator))]
        starts.append(kept + _sum_zero(count, generator) * max(how.mutation, 1e-3) * 4)
    return starts


def _child(
    members: Sequence[Tensor], place: int, best: Tensor, how: Search, left: float, generator: torch.Generator
) -> Tensor:
    """member + step (best - member) + step (a - b) + noise, of sum 1; a and b are two others."""
    others = [k for k in range(len(members)) if k != place]
    first, second = torch.randperm(len(others), generator=generator)[:2].tolist()
    a, b, member = members[others[first]], members[others[second]], members[place]
    towards = float(torch.rand((), generator=generator)) * (best - member)
    return member + towards + how.step * (a - b) + how.mutation * left * _sum_zero(len(member), generator)


def _sum_zero(count: int, generator: torch.Generator) -> Tensor:
    noise = torch.randn(count, dtype=torch.float64, generator=generator)
    return noise - noise.mean()


def combine(files: Sequence[Path], coefficients: Tensor) -> dict[str, Tensor]:
    """The sum of the weights in safetensors files, each times its coefficient; in float64, given as float32.

    One file is read at a time. ValueError for files of other tensors than the first.
    """
    total: dict[str, Tensor] = {}
    for path, coefficient in zip(files, coefficients.tolist(), strict=True):
        weights = load_file(path)
        if total and weights.keys() != total.keys():
            raise ValueError(f"{path} holds other tensors than {files[0]}")
        for name, value in weights.items():
            part = coefficient * value.double() if value.is_floating_point() else value
            total[name] = part if name not in total or not value.is_floating_point() else total[name] + part
    return {name: value.float() if value.is_floating_point() else value for name, value in total.items()}


def saved_weights(run: Path, of: str = "ema") -> list[Path]:
    """A run's saved weights, oldest first. of: 'ema' or 'raw', in its checkpoints, or 'snapshots', of ema.widths.

    ValueError where there are fewer than two, or for another word.
    """
    if of == "snapshots":
        snapshots = list_snapshots(run / "ema")
        found = [snapshots[key] for key in sorted(snapshots, key=lambda key: (key.step, key.sigma_rel))]
    elif of in ("ema", "raw"):
        found = [path / f"{of}.safetensors" for path in list_checkpoints(run / "checkpoints")]
    else:
        raise ValueError(f"the weights must be 'ema', 'raw' or 'snapshots', got {of!r}")
    if len(found) < 2:
        raise ValueError(
            f"{run} has {len(found)} saved weights of {of!r}, and a combination needs two or more; train with a "
            "larger training.keep, or with ema.widths for snapshots"
        )
    return found
