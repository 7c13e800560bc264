"""Solver search: a schedule of solver steps for one denoiser and one number of evaluations.

Liu et al. 2023 (USF; arXiv:2312.07243) search over the choices of the unified framework with a learned predictor of
quality; here a plain evolutionary search goes over the same space: at each step the prediction, its variable, the
order and the corrector, and the times as well. The times and the difference weights of the best schedules are then
fitted by least squares (dinit.samplers.search.fit). The objective is the distance to a run of many steps from the
same noise.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinit.diffusion import Denoiser
from dinit.files import write_atomically
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.karras import Karras
from dinit.samplers.grids.log_snr import LogSNR
from dinit.samplers.grids.shifted import Shifted
from dinit.samplers.grids.times import Times
from dinit.samplers.grids.uniform import Uniform
from dinit.samplers.multistep.adams import ExponentialAB
from dinit.samplers.multistep.exponential_weights import Prediction, Variable
from dinit.samplers.multistep.rule_files import rule_from_config
from dinit.samplers.multistep.rules import Corrector, Extrapolate
from dinit.samplers.multistep.unified import Unified
from dinit.samplers.search.fit import fit

SPACE: tuple[tuple[Prediction, Variable], ...] = (
    ("x0", "log-snr"),
    ("eps", "log-snr"),
    ("v", "log-snr"),
    ("velocity", "log-snr"),
    ("velocity", "own"),
    ("v", "own"),
    ("eps", "own"),
)
"""The forms that the search chooses among."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Args:
        sampler: the schedule.
        grid: its times.
        error: RMS distance to the reference run.
        start_error: that of the best of the schedules that the search began with.
    """

    sampler: Unified
    grid: Times
    error: float
    start_error: float

    def to_config(self) -> dict[str, Any]:
        """A mapping of plain values that `from_config` reads."""
        return {
            "schedule": [rule.to_config() for rule in self.sampler.schedule],
            "warm_up": self.sampler.warm_up,
            "times": list(self.grid.values),
            "error": self.error,
            "start_error": self.start_error,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Found:
        """What `to_config` gave. ValueError or KeyError where it is something else."""
        sampler = Unified(tuple(rule_from_config(rule) for rule in config["schedule"]), config["warm_up"])
        return cls(sampler, Times(tuple(config["times"])), config["error"], config["start_error"])


@dataclass(frozen=True)
class SolverSearch:
    """An evolutionary search over schedules of solver steps. Liu et al. 2023 (USF, S³), their space.

    Args:
        population: schedules kept, at least 2.
        generations: rounds in which as many again are bred from them; at least 0.
        fit: least-squares steps on the numbers of the best schedule, each of about four runs a step of the sampler;
            0 leaves the numbers as they were found. It gains most.
        fits: schedules that are fitted, the best one and the best of those that the search began with; at least 1.
        seed: of the search's own choices; the same seed and problem give the same schedule.
        reference_steps: steps of the run that the schedule should end near to, at least 2.
        cache: a folder in which results are kept as JSON and found again, or None.

    Raises:
        ValueError: a number below its least.
    """

    population: int = 16
    generations: int = 20
    fit: int = 20
    fits: int = 3
    seed: int = 0
    reference_steps: int = 200
    cache: Path | str | None = None

    def __post_init__(self) -> None:
        for name, least in (("population", 2), ("generations", 0), ("fit", 0), ("fits", 1), ("reference_steps", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"solver-search: {name} must be at least {least}, got {getattr(self, name)}")

    def find(
        self, denoiser: Denoiser, nfe: int, noise: Tensor, labels: Tensor | None = None, key: str = ""
    ) -> Found:
        """The best schedule of `nfe` evaluations for some initial noises.

        Args:
            denoiser: what is sampled from.
            nfe: network evaluations an image, at least 2.
            noise: (B, C, H, W), initial noises. B should be large: a sample between two modes that is not among
                them may end in the wrong one.
            labels: (B,) class numbers; None for no condition.
            key: names the denoiser in the cache: change it when the weights change.

        Returns:
            The sampler, its times and its error.

        Raises:
            ValueError: nfe < 2, or a cache without a key.
        """
        if nfe < 2:
            raise ValueError(f"solver-search: nfe must be at least 2 (one step and the posterior mean), got {nfe}")
        if self.cache is None:
            return self._search(denoiser, nfe, noise, labels)
        if not key:
            raise ValueError("solver-search: a cache needs a key that names the denoiser and its weights")
        path = Path(self.cache) / f"solver-{self._digest(denoiser, nfe, noise, labels, key)}.json"
        if path.exists():
            return Found.from_config(json.loads(path.read_text(encoding="utf-8")))
        found = self._search(denoiser, nfe, noise, labels)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(found.to_config(), indent=1))
        return found

    def _digest(self, denoiser: Denoiser, nfe: int, noise: Tensor, labels: Tensor | None, key: str) -> str:
        settings = {k: v for k, v in asdict(self).items() if k != "cache"}
        identity = [settings, repr(denoiser.process), denoiser.t_min, denoiser.t_max, nfe, key]
        data = noise.detach().cpu().double().numpy().tobytes()
        chosen = b"" if labels is None else torch.as_tensor(labels).cpu().numpy().tobytes()
        return hashlib.sha256(json.dumps(identity).encode() + data + chosen).hexdigest()[:16]

    def _search(self, denoiser: Denoiser, nfe: int, noise: Tensor, labels: Tensor | None) -> Found:
        steps, rng = nfe - 1, random.Random(self.seed)
        reference = ExponentialAB(3, "v").sample(
            denoiser, noise, self.reference_steps, labels=labels, grid=LogSNR()
        )

        def run(sampler: Unified, grid: Times) -> Tensor:
            return sampler.sample(denoiser, noise, grid=grid, labels=labels)

        def error(genome: Genome) -> float:
            rms = float((run(genome.sampler, genome.grid) - reference).square().mean().sqrt())
            return rms if math.isfinite(rms) else math.inf

        start = [(error(g), i, g) for i, g in enumerate(starts(denoiser, steps))]
        pool = sorted(start)[: self.population]
        for generation in range(self.generations):
            size = 0.3 * 0.9**generation
            bred = []
            for child in range(self.population):
                a, b = (pool[min(rng.randrange(len(pool)), rng.randrange(len(pool)))][2] for _ in range(2))
                genome = mutated(crossed(a, b, rng), size, rng)
                bred.append((error(genome), len(start) + generation * self.population + child, genome))
            pool = sorted(pool + bred)[: self.population]
        best, _, genome = pool[0]
        found = Found(genome.sampler, genome.grid, best, min(start)[0])
        # The best schedule is not always the best start of a fit: some of the initial ones are fitted too.
        for chosen in [genome, *(g for _, _, g in sorted(start)[: self.fits - 1])] if self.fit else []:
            sampler, grid, fitted = fit(denoiser, chosen.sampler, chosen.grid, run, reference, self.fit)
            if fitted < found.error:
                found = replace(found, sampler=sampler, grid=grid, error=fitted)
        return found


@dataclass(frozen=True)
class Genome:
    """One schedule: a rule for each step, and its times, decreasing."""

    rules: tuple[Extrapolate, ...]
    times: tuple[float, ...]

    @property
    def sampler(self) -> Unified:
        return Unified(self.rules, "lower-order")

    @property
    def grid(self) -> Times:
        return Times(self.times)


def starts(denoiser: Denoiser, steps: int) -> list[Genome]:
    """The named solvers' schedules: every form, orders 2 to 4, with and without corrector, on four grids."""
    grids: list[TimeGrid] = [LogSNR(), Karras(), Uniform(), Shifted(2.0, "t_min")]
    genomes = []
    for grid in grids:
        times = tuple(grid.times(denoiser.process, steps + 1, denoiser.t_min, denoiser.t_max).tolist())
        for prediction, variable in SPACE:
            for order in (2, 3, 4):
                for corrector in (None, Corrector()):
                    rule = Extrapolate(prediction, order, variable=variable, corrector=corrector)
                    genomes.append(Genome((rule,) * steps, times))
    return genomes


def crossed(a: Genome, b: Genome, rng: random.Random) -> Genome:
    """Each rule from one of the parents; the times between theirs, in one proportion for all."""
    part = rng.choice((0.0, 0.5, 1.0))
    times = tuple(part * s + (1 - part) * t for s, t in zip(a.times, b.times, strict=True))
    return Genome(tuple(rng.choice(pair) for pair in zip(a.rules, b.rules, strict=True)), times)


def mutated(genome: Genome, size: float, rng: random.Random) -> Genome:
    """One choice of one step made again, and inner times moved by up to `size` of the gap to a neighbour."""
    i, rules, kind = rng.randrange(len(genome.rules)), list(genome.rules), rng.randrange(4)
    if kind == 0:
        prediction, variable = rng.choice(SPACE)
        rules[i] = replace(rules[i], prediction=prediction, variable=variable)
    elif kind == 1:
        rules[i] = replace(rules[i], order=rng.randint(1, 4))
    elif kind == 2:
        rules[i] = replace(rules[i], corrector=None if rules[i].corrector else Corrector())
    return Genome(tuple(rules), moved(genome.times, size, rng))


def moved(times: tuple[float, ...], size: float, rng: random.Random) -> tuple[float, ...]:
    """Inner times, each moved with chance 1/2 towards a neighbour by up to `size` of the gap; order is kept."""
    found = list(times)
    for i in range(1, len(times) - 1):
        if rng.random() < 0.5:
            shift = size * rng.uniform(-1, 1)
            neighbour = found[i + 1] if shift > 0 else found[i - 1]
            found[i] = found[i] * (neighbour / found[i]) ** abs(shift)  # times span decades
    return tuple(found)
