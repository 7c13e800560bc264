"""A run of a sampler: what is computed before its first step, and the one loop that takes the steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Process, RunContext, Scales
from dinit.diffusion.condition import SupportsNormal

if TYPE_CHECKING:  # base.py imports this module
    from dinit.samplers.base import Sampler


@dataclass
class StepDenoiser:
    """The denoiser of one step, with condition and step number filled in. Called with (x_t, t).

    Attributes:
        denoiser: What is evaluated.
        cond: The condition of the run at this step.
        inner: Scales of the step's inner times, in the order of `Sampler.inner_times`.
        calls: Evaluations so far.
        first: What the first of them gave.
    """

    denoiser: Denoiser
    cond: Condition
    inner: tuple[Scales, ...] = ()
    calls: int = 0
    first: Denoised | None = None

    def __call__(self, x_t: Tensor, t: Scales) -> Denoised:
        if (t.single or t.time.ndim == 0) and self.denoiser.known_at(t):
            return Denoised(x_t, x_t / t.alpha, t)
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


@dataclass(slots=True)
class StepNoise:
    """The noise of one step: `noise(j, like)` is the j-th standard normal draw, j < draws_per_step."""

    source: SupportsNormal
    step: int
    draws_per_step: int

    def __call__(self, j: int, like: Tensor) -> Tensor:
        return self.source.normal("step", self.step * self.draws_per_step + j, like)


@dataclass(frozen=True)
class Step:
    """One step of a trajectory, as `Sampler.iterate` yields it.

    Attributes:
        index: 0 .. total - 1.
        total: Sampling steps of the run.
        t: The time of x_t, in [0, 1].
        x_t: (B, C, H, W), the state before the step.
        first: The step's first evaluation.
        x_s: (B, C, H, W), the state after the step; after the last one, the sample.
        nfe: Network evaluations per image so far.
        state: What the solver carries to the next step besides x_s: multistep history, a coupled state.
    """

    index: int
    total: int
    t: float
    x_t: Tensor
    first: Denoised
    x_s: Tensor
    nfe: int
    state: Any = None

    @property
    def x0(self) -> Tensor:
        """(B, C, H, W), the posterior mean of the step's first evaluation."""
        return self.first.x0


@dataclass(frozen=True)
class Run:
    """A run before its first step: all that the loop needs, with no schedule left to read.

    Attributes:
        sampler: Whose steps are taken.
        denoiser: What is sampled from.
        points: Scales of every time, in the order of the run.
        total: Sampling steps: one fewer than points, or as many, where the last is the sampler's `finish`.
        cond: The condition, with the number of steps and the noise source.
        noise_source: Of the noise that the steps add.
        inner: Scales of every step's inner times, one tuple a step.
        state: What the first step takes.
    """

    sampler: Sampler
    denoiser: Denoiser
    points: list[Scales]
    total: int
    cond: Condition
    noise_source: SupportsNormal
    inner: list[tuple[Scales, ...]]
    state: Any

    @classmethod
    def prepare(
        cls,
        sampler: Sampler,
        denoiser: Denoiser,
        points: list[Scales],
        total: int,
        cond: Condition,
        noise_source: SupportsNormal,
        state: Any,
    ) -> Run:
        """The run, checked. `state`: None for what the sampler's `init` makes. ValueError where it is refused."""
        sampler.check_outputs(denoiser)
        sampler.check(denoiser, points)
        cond = cond.in_run(RunContext(noise_source=noise_source, steps=total))
        inner = sampler.inner_points(denoiser, points, total)
        state = sampler.init(denoiser, points, total) if state is None else state
        return cls(sampler, denoiser, points, total, cond, noise_source, inner, state)

    def iterate(self, x: Tensor, denoiser_at: Callable[[int], StepDenoiser] | None = None) -> Iterator[Step]:
        """Every step from the state x at the first time.

        Args:
            x: (B, C, H, W).
            denoiser_at: From a step's index to its denoiser; None for the run's denoiser at that step.
        """
        denoiser_at = denoiser_at or self.denoiser_at
        state, nfe, draws = self.state, 0, self.sampler.claims().draws_per_step
        for i in range(self.total):
            denoise = denoiser_at(i)
            x_s, state = self.advance(i, denoise, x, state, StepNoise(self.noise_source, i, draws))
            nfe += denoise.calls
            assert denoise.first is not None, "a step evaluates the denoiser at least once"
            if i + 1 == self.total and (self.total == len(self.points) or not self.points[-1].floats.sigma):
                self.sampler.check_end(x_s)
                self.denoiser.check_end(x_s)
            yield Step(i, self.total, self.points[i].floats.time, x, denoise.first, x_s, nfe, state)
            x = x_s

    def advance(
        self, index: int, denoise: StepDenoiser, x: Tensor, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        """The state after a step, and what the sampler carries on: of its `step`, or after the last time `finish`.

        Args:
            index: Of the step.
            denoise: Its denoiser.
            x: (B, C, H, W), the state before it.
            state: What the step before it carried on.
            noise: Its draws.
        """
        if index + 1 < len(self.points):
            return self.sampler.step(denoise, x, self.points[index], self.points[index + 1], state, noise)
        return self.sampler.finish(denoise, x, self.points[index], state, noise)

    def last_state(self, x: Tensor, denoiser: Denoiser, noise_source: SupportsNormal) -> Tensor:
        """The end of the run on another denoiser, without the context and the record of each step.

        Args:
            x: (B, C, H, W), the state at the first time.
            denoiser: On the run's process, without a condition.
            noise_source: Of the noise that the steps add.
        """
        state, draws = self.state, self.sampler.claims().draws_per_step
        for i in range(self.total):
            denoise = StepDenoiser(denoiser, self.cond, self.inner_of(i))
            x, state = self.advance(i, denoise, x, state, StepNoise(noise_source, i, draws))
        return x

    def denoiser_at(self, index: int) -> StepDenoiser:
        """The denoiser of one step."""
        return StepDenoiser(self.denoiser, self.cond.at_step(index), self.inner_of(index))

    def inner_of(self, index: int) -> tuple[Scales, ...]:
        """The scales of a step's inner times."""
        return self.inner[index] if index < len(self.inner) else ()
