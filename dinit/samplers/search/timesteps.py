"""Time-step search: times for one denoiser, sampler and number of steps. Li et al. 2023 (AutoDiffusion).

AutoDiffusion searches the subset of a chain's time steps that minimises a metric; here the times are real numbers
and the metric is any function of samples. The grid "searched" reads what was found.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dinit.diffusion import Denoiser, Process
from dinit.diffusion.condition import SupportsNormal
from dinit.files import write_atomically
from dinit.samplers.base import SAMPLERS, Sampler, SamplerSpec
from dinit.samplers.grids.times import Times
from dinit.samplers.points import End, sampling_points

STARTS = ("uniform", "log-snr", "karras", "quadratic", "align-your-steps")

Metric = Callable[[Tensor], float]


@dataclass(frozen=True)
class Evolution:
    """Settings of an evolutionary search over times.

    Args:
        population: candidates in a generation; more than `parents`.
        parents: the best of a generation, which are kept; at least 2.
        generations: after the first; at least 0.
        mutation: probability that a time of a child is moved, in (0, 1].
        seed: of all randomness.

    Raises:
        ValueError: a number outside its range.
    """

    population: int = 16
    parents: int = 4
    generations: int = 10
    mutation: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if not (2 <= self.parents < self.population and self.generations >= 0):
            raise ValueError(
                f"a search needs 2 <= parents < population and generations >= 0, got {self.parents} parents of "
                f"{self.population} in {self.generations} generations"
            )
        if not 0 < self.mutation <= 1:
            raise ValueError(f"mutation must be in (0, 1], got {self.mutation}")


def search_timesteps(
    denoiser: Denoiser,
    sampler: SamplerSpec,
    steps: int,
    metric: Metric,
    *,
    noise: Tensor,
    labels: Tensor | Sequence[int] | None = None,
    evolution: Evolution | None = None,
    cache: str | Path | None = None,
    initial_state: Tensor | None = None,
    noise_source: SupportsNormal | None = None,
    seed: int | Sequence[int] = 0,
    end: End | None = None,
) -> Times:
    """The times whose samples have the lowest metric among those tried. Li et al. 2023 (AutoDiffusion).

    Registered grids (STARTS) are among the first candidates, so that the result is never worse than the best of
    them on this noise; score it on another. The last time lies between theirs. Source: arXiv:2309.10438.

    Args:
        denoiser: what the samples are drawn from.
        sampler: a Sampler, a registered name, or a mapping with options.
        steps: the number of times, at least 3.
        metric: of the samples (B, C, H, W) to a number, lower is better; a candidate that gives NaN is dropped.
        noise: (B, C, H, W), the initial noise of every candidate.
        labels: (B,) class numbers; None for no condition.
        evolution: settings of the search.
        cache: a JSON file. Where it holds the result of the same search it is read and nothing is run; it is
            written, whole or not at all, otherwise. The key has the settings and the noise, not the denoiser's
            weights or what the metric computes: give each its own file.
        initial_state: (B, C, H, W), a state at the first time, in place of noise.
        noise_source: of the noise that stochastic steps add; None for `NoiseSource.from_seed(seed)`.
        seed: of the noise source, where none is given: one seed, or one an image. The
            search's own is in `evolution`.
        end: as in `Sampler.iterate`.

    Returns:
        A grid of `steps` times.

    Raises:
        ValueError: steps < 3 (there is nothing to move), or a cache that holds another search.
    """
    if steps < 3:
        raise ValueError(f"a search moves the times between two fixed ends: steps must be at least 3, got {steps}")
    solver = SAMPLERS.create(sampler)
    evolution = evolution or Evolution()
    end = solver.end_for(denoiser.process) if end is None else end
    key = _key(denoiser, solver, steps, noise, labels, evolution)
    key |= _beside_defaults(initial_state=initial_state, noise_source=noise_source, seed=seed, end=end)
    if cache is not None and Path(cache).exists():
        return _read(Path(cache), key)

    def score(times: Tensor) -> float:
        samples = solver.sample(
            denoiser,
            noise,
            labels=labels,
            grid=times,
            initial_state=initial_state,
            noise_source=noise_source,
            seed=seed,
            end=end,
        )
        found = float(metric(samples))
        return math.inf if math.isnan(found) else found

    score_of, times = _evolve(denoiser, steps, score, evolution)
    values = tuple(times.tolist())
    if cache is not None:
        content = {"times": values, "metric": score_of, "search": key}
        write_atomically(Path(cache), json.dumps(content, indent=1) + "\n")
    return Times(values)


def _evolve(
    denoiser: Denoiser, steps: int, score: Callable[[Tensor], float], evolution: Evolution
) -> tuple[float, Tensor]:
    """The best (score, times) of all generations."""
    random = np.random.default_rng(evolution.seed)
    process = denoiser.process
    starts = [torch.stack([k.time for k in sampling_points(denoiser, steps, grid, "state")]) for grid in STARTS]
    starts += [_mutated(process, starts[i % len(starts)], 1.0, random) for i in range(evolution.population)]
    ranked = sorted(((score(times), i, times) for i, times in enumerate(starts[: evolution.population])))
    count = len(ranked)
    for _ in range(evolution.generations):
        best = ranked[: evolution.parents]
        for _ in range(evolution.population - len(best)):
            a, b = (best[i][2] for i in random.choice(len(best), 2, replace=False))
            mixed = a + float(random.random()) * (b - a)  # between two decreasing rows every row decreases
            child = _mutated(process, mixed, evolution.mutation, random)
            best.append((score(child), count, child))
            count += 1
        ranked = sorted(best)
    return ranked[0][0], ranked[0][2]


def _mutated(process: Process, times: Tensor, chance: float, random: np.random.Generator) -> Tensor:
    """The times, each inner one moved with the given chance to a place between its neighbours.

    Places are even in log-SNR, and in t next to a time where the log-SNR is infinite.
    """
    values = times.clone()
    for i in range(1, len(times) - 1):
        if random.random() >= chance:
            continue
        place = 0.1 + 0.8 * float(random.random())
        ends = process.log_snr(values[[i - 1, i + 1]])
        in_t = values[i - 1] + place * (values[i + 1] - values[i - 1])
        in_log_snr = process.time_of(ends[0] + place * (ends[1] - ends[0]))
        moved = in_log_snr if bool(ends.isfinite().all()) else in_t
        values[i] = moved if bool(values[i + 1] < moved) and bool(moved < values[i - 1]) else in_t
    return values


def _key(
    denoiser: Denoiser,
    sampler: Sampler,
    steps: int,
    noise: Tensor,
    labels: Tensor | Sequence[int] | None,
    evolution: Evolution,
) -> dict[str, object]:
    """What a cached result belongs to, as JSON has it."""
    given = None if labels is None else torch.as_tensor(labels).tolist()
    return {
        "process": repr(denoiser.process),
        "sampler": repr(sampler),
        "steps": steps,
        "labels": given,
        "noise": _digest(noise),
        "evolution": repr(evolution),
    }


def _beside_defaults(**given: object) -> dict[str, object]:
    """What else decides the samples, where it is not its default, which a file without it was made with."""
    defaults: dict[str, object] = {"initial_state": None, "noise_source": None, "seed": 0, "end": "posterior-mean"}
    values = {name: _digest(v) if isinstance(v, Tensor) else v for name, v in given.items()}
    changed = {name: value for name, value in values.items() if value != defaults[name]}
    return {name: value if isinstance(value, (int, str)) else repr(value) for name, value in changed.items()}


def _digest(x: Tensor) -> str:
    return hashlib.sha256(x.detach().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


def _read(cache: Path, key: dict[str, object]) -> Times:
    """The cached times. ValueError where the file holds another search."""
    found = json.loads(cache.read_text())
    made = found.get("search", {})
    differ = [k for k in {**key, **made} if made.get(k) != key.get(k)]
    if differ:
        raise ValueError(
            f"{cache} holds the result of another search (other {', '.join(differ)}): give another file"
        )
    return Times(tuple(found["times"]))
