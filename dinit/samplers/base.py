"""What a sampler is, and the one loop that runs all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Process, RunContext, Scales
from dinit.diffusion.condition import SupportsNormal
from dinit.registry import Registry
from dinit.samplers._names import advise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import default_grid
from dinit.samplers.noise import NoiseSource
from dinit.samplers.points import End, GridLike, check_noisy_start, sampling_points

if TYPE_CHECKING:
    from dinit.samplers.step_table import Description

SAMPLERS: Registry[type[Sampler]] = Registry("sampler", "dinit.samplers", advise=advise)


@dataclass
class StepDenoiser:
    """The denoiser as one step sees it: condition and step number filled in, evaluations counted.

    inner: the scales of the step's inner times, in the order of `Sampler.inner_times`.
    """

    denoiser: Denoiser
    cond: Condition
    inner: tuple[Scales, ...] = ()
    calls: int = 0
    first: Denoised | None = None

    def __call__(self, x_t: Tensor, t: Scales) -> Denoised:
        denoised = self.denoiser(x_t, t, self.cond)
        self.calls += 1
        self.first = self.first or denoised
        return denoised

    @property
    def process(self) -> Process:
        return self.denoiser.process

    def scales(self, t: Tensor) -> Scales:
        """The scales of a time between the grid's, a 0-dimensional float64 tensor."""
        return self.denoiser.process.scales(t)


@dataclass(frozen=True)
class StepNoise:
    """The noise of one step: `noise(j, like)` is the j-th standard normal draw, j < draws_per_step."""

    source: SupportsNormal
    step: int
    draws_per_step: int

    def __call__(self, j: int, like: Tensor) -> Tensor:
        return self.source.normal("step", self.step * self.draws_per_step + j, like)


@dataclass(frozen=True)
class Step:
    """One step of a trajectory, as `iterate` yields it.

    index: 0 .. total - 1. t: the time that x_t stands at. x0: the posterior mean that the step was taken from,
    (B, C, H, W). x_s: the state after the step; after the last one it is the sample. nfe: network evaluations
    per image so far. state: what the solver carries on besides x_s (multistep history, a coupled state).
    """

    index: int
    total: int
    t: float
    x_t: Tensor
    x0: Tensor
    x_s: Tensor
    nfe: int
    state: Any = None


@dataclass(frozen=True)
class Claims:
    """What a sampler claims of itself. `dinit verify` and the tests measure every one.

    Attributes:
        order: Of convergence to the probability-flow ODE's solution (deterministic samplers) or of the
            distribution (stochastic ones, weak order 1).
        nfe_per_step: Network evaluations in one step.
        draws_per_step: Standard normal draws in one step, 0 for a deterministic sampler.
        cost_depends_on: What decides how many evaluations and draws a run takes. 'steps': their number alone, and
            the claims are exact. 'times': where the steps fall too, and the claims are those of a plain step.
            'state': the sampler is adaptive, and `nfe_per_step` is a lower bound.
        supported_outputs: The fields of Denoised besides x0 that every step uses.
    """

    order: int = 1
    nfe_per_step: int = 1
    draws_per_step: int = 0
    cost_depends_on: Literal["steps", "times", "state"] = "steps"
    supported_outputs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Sampler(ABC):
    """A solver: a frozen dataclass with one pure `step` and the claims that the tests measure."""

    def claims(self) -> Claims:
        """What this sampler claims with its present options."""
        return Claims()

    @property
    def stochastic(self) -> bool:
        """Whether the steps add noise."""
        return self.claims().draws_per_step > 0

    @property
    def own_grid(self) -> TimeGrid | None:
        """The only grid that this sampler runs on; None where any will do."""
        return None

    def grid_for(self, process: Process) -> TimeGrid:
        """The grid of a run that names none: the process's usual one, where steps even in it suit this solver.

        One that steps in another variable, which the usual grid crosses in too long a first step, says another.
        """
        return self.own_grid or default_grid(process)

    @abstractmethod
    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        """From x_t at t to x_s at s < t. Scalars are float64 CPU tensors; nothing is kept on self.

        state: what the previous step returned; at the first, what `init` did (None). Returns (x_s, state).
        """

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:  # noqa: B027 (most samplers run anywhere)
        """ValueError, before the first evaluation, where this sampler cannot run on these times."""

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        """(N, k) float64: the k times between the grid's that each of a run's N steps evaluates at.

        They are planned for all steps at once, before the loop, which then reads no schedule back; `step` finds
        their scales in `denoise.inner`. t, s: the ends of the steps, scales of (N,) tensors. total: sampling
        steps, N or (with the posterior mean at the end) N + 1.
        """
        return torch.empty(len(t.time), 0, dtype=torch.float64)

    def init(self, denoiser: Denoiser, points: list[Scales], total: int) -> Any:
        """The state that the first step is given, made before the loop from the times of the whole run.

        A solver whose steps differ by their place in the run computes all its coefficients here. points: the ends
        of the steps, N + 1 of them. total: sampling steps, N + 1 or (with end='state') N.
        """
        return None

    def iterate(
        self,
        denoiser: Denoiser,
        initial_noise: Tensor,
        steps: int | None = None,
        *,
        labels: Tensor | Sequence[int] | None = None,
        grid: GridLike | None = None,
        initial_state: Tensor | None = None,
        state: Any = None,
        noise_source: SupportsNormal | None = None,
        seed: int = 0,
        end: End = "posterior-mean",
    ) -> Iterator[Step]:
        """Runs the sampler, yielding every step.

        initial_noise: (B, C, H, W) standard normal, scaled here to the prior of the first time; its dtype (float32
        or float64) is the state's. steps: sampling steps, at least 1. grid: a TimeGrid, a registered name, or
        decreasing times; None is the sampler's `grid_for` the process. labels: (B,), None for the denoiser's own or
        null.
        initial_state: a state at the first time, in place of noise. state: what came with it (`Step.state`); None
        is what `init` makes. noise_source: of the noise that stochastic steps add; None is
        NoiseSource.from_seed(seed).
        end: 'posterior-mean' stops at the last time with sigma > 0 and returns E[x0 | x_t] there; 'state' returns
        x at the grid's last time.
        Raises ValueError for steps < 1, times that do not decrease, a first time that pure noise cannot stand
        at, or a pairing that cannot run.
        """
        x = initial_noise if initial_state is None else initial_state
        if not isinstance(x, Tensor):
            raise ValueError(f"initial_noise must be a (B, C, H, W) tensor, got {type(x).__name__}")
        points = sampling_points(denoiser, steps, self.grid_for(denoiser.process) if grid is None else grid, end)
        self._check_required_outputs(denoiser)
        self.check(denoiser, points)
        if initial_state is None:
            check_noisy_start(points[0])
            x = x * denoiser.process.prior_std(points[0])
        source: SupportsNormal = noise_source or NoiseSource.from_seed(seed, x.shape[0])
        total = len(points) - (end == "state")
        cond = denoiser.condition(labels, x.shape[0], x.device).in_run(RunContext(noise_source=source, steps=total))
        inner = self._inner_points(denoiser, points, end)
        if state is None:
            state = self.init(denoiser, points, len(points) - (end == "state"))
        return self._run(denoiser, x, points, inner, state, cond, source, end)

    def _check_required_outputs(self, denoiser: Denoiser) -> None:
        """An output besides x0 that the sampler ignores would change the images without an error."""
        required = denoiser.required_outputs
        if ignored := required - self.claims().supported_outputs:
            fits = [name for name in SAMPLERS if required <= SAMPLERS.create(name).claims().supported_outputs]
            raise ValueError(
                f"this guidance returns {' and '.join(sorted(ignored))}, which {type(self).__name__} ignores; "
                f"samplers that use it: {', '.join(fits) or 'none'}"
            )

    def _inner_points(self, denoiser: Denoiser, points: list[Scales], end: End) -> list[tuple[Scales, ...]]:
        """The scales of every step's inner times, one tuple a step."""
        times = torch.stack([k.time for k in points])
        t, s = denoiser.process.scales(times[:-1]), denoiser.process.scales(times[1:])
        inner = self.inner_times(denoiser, t, s, len(points) - (end == "state"))
        if inner.numel() == 0:
            return [()] * (len(points) - 1)
        rows = [tuple(row.unbind()) for row in denoiser.process.scales(inner).unbind()]
        for k in (k for row in rows for k in row):
            _ = k.floats  # read back here, so that the loop does not
        return rows

    def _run(
        self,
        denoiser: Denoiser,
        x: Tensor,
        points: list[Scales],
        inner: list[tuple[Scales, ...]],
        state: Any,
        cond: Condition,
        source: SupportsNormal,
        end: End,
    ) -> Iterator[Step]:
        total = len(points) - 1 + (end == "posterior-mean")
        nfe, draws = 0, self.claims().draws_per_step
        for i, (t, s) in enumerate(pairwise(points)):
            denoise = StepDenoiser(denoiser, cond.at_step(i), inner[i])
            x_s, state = self.step(denoise, x, t, s, state, StepNoise(source, i, draws))
            nfe += denoise.calls
            assert denoise.first is not None, "a step evaluates the denoiser at least once"
            yield Step(i, total, t.floats.time, x, denoise.first.x0, x_s, nfe, state)
            x = x_s
        if end == "posterior-mean":
            x0 = denoiser(x, points[-1], cond.at_step(total - 1)).x0
            yield Step(total - 1, total, points[-1].floats.time, x, x0, x0, nfe + 1, state)

    def sample(self, denoiser: Denoiser, initial_noise: Tensor, steps: int | None = None, **options: Any) -> Tensor:
        """The end of the trajectory, (B, C, H, W). Arguments as `iterate`."""
        x = initial_noise
        for step in self.iterate(denoiser, initial_noise, steps, **options):
            x = step.x_s
        return x

    def describe(
        self, process: Process | str, steps: int | None = None, grid: GridLike | None = None
    ) -> Description:
        """A table of the run: its times and their scales, evaluations so far, and the weights of every step.

        process: a Process or a registered name. steps, grid: as `iterate`. Returns a Description, which prints as a
        table; its rows have the numbers. A sampler that reads its states (adaptive, norms) has no weights there.
        """
        from dinit.samplers.step_table import describe

        return describe(self, process, steps, grid)

    def nfe(self, steps: int) -> int:
        """Network evaluations per image for `steps` sampling steps: the solver's moves and the last posterior
        mean."""
        return (steps - 1) * self.claims().nfe_per_step + 1
