"""Samplers: the contract, the registry, and the one loop that runs all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dinit.arguments import shown
from dinit.diffusion import Condition, Denoised, Denoiser, Process, RunContext, Scales
from dinit.diffusion.condition import SupportsNormal
from dinit.diffusion.denoiser import check_denoiser
from dinit.registry import Registry
from dinit.samplers._names import advise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import default_grid
from dinit.samplers.grids.times import Times
from dinit.samplers.noise import NoiseSource
from dinit.samplers.points import End, GridLike, check_noisy_start, number_of_times, sampling_points

if TYPE_CHECKING:
    from dinit.samplers.step_table import Description

SAMPLERS: Registry[type[Sampler]] = Registry("sampler", "dinit.samplers", advise=advise)


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
class Claims:
    """What a sampler claims of itself. `dinit verify` and the tests measure every one.

    Attributes:
        order: Of convergence to the probability-flow ODE's solution (deterministic samplers) or of the
            distribution (stochastic ones, weak order 1).
        nfe_per_step: Network evaluations in one step.
        draws_per_step: Standard normal draws in one step, 0 for a deterministic sampler.
        cost_depends_on: What decides how many evaluations and draws a run takes. 'steps': their number alone, and
            the claims are exact. 'times': where the steps fall too, and the claims are those of a plain step.
            'state': the sampler is adaptive, `nfe_per_step` is a lower bound, and each trial step reads its errors
            back from the device, which no other sampler does.
        supported_outputs: The fields of Denoised besides x0 that every step uses.
    """

    order: int = 1
    nfe_per_step: int = 1
    draws_per_step: int = 0
    cost_depends_on: Literal["steps", "times", "state"] = "steps"
    supported_outputs: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Sampler(ABC):
    """A solver of the reverse process: a frozen dataclass with one pure `step`, and claims that tests measure."""

    def claims(self) -> Claims:
        """Order, cost and randomness with the present options."""
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
        """The grid of a run that names none, on this process.

        It is the process's usual grid. A solver that steps in another variable, in which the first step of the
        usual grid would be too long, overrides it.
        """
        return self.own_grid or default_grid(process)

    def grid_for_run(self, process: Process, evaluations: int) -> TimeGrid:
        """The grid of a run of so many evaluations that names none: `grid_for`, unless their number decides.

        Args:
            process: Of the run.
            evaluations: Network evaluations of the run, at least 1.
        """
        return self.grid_for(process)

    def chosen(self, evaluations: int) -> Sampler:
        """The sampler that a run stands for, and its record has: itself, unless it chooses between others.

        Args:
            evaluations: Network evaluations of the run, at least 1.

        Returns:
            A sampler with the same steps.
        """
        return self

    def end_for(self, process: Process) -> End:
        """The end of a run that names none, on this process: the posterior mean, unless a sampler overrides it."""
        return "posterior-mean"

    @abstractmethod
    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        """One step of the solver, from t to s < t. It is pure: nothing is kept on self.

        Args:
            denoise: The denoiser of this step, with `denoise.inner`; it has to be evaluated at least once.
            x_t: (B, C, H, W), the state at t.
            t: Scales of the step's start, float64 on the CPU.
            s: Scales of its end.
            state: What the step before returned; at the first, what `init` did.
            noise: Draws of this step, by number.

        Returns:
            x_s, (B, C, H, W), and the state for the next step.
        """

    def finish(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, state: Any, noise: StepNoise
    ) -> tuple[Tensor, Any]:
        """The last step of a run with end='posterior-mean': E[x0 | x_t] at the run's last time.

        Args:
            denoise: The denoiser of this step; it has to be evaluated at least once.
            x_t: (B, C, H, W), the state at t.
            t: Scales of the run's last time.
            state: What the step before returned; None or what `init` did where there is none.
            noise: Draws of this step, by number.

        Returns:
            The sample, (B, C, H, W), and the state that came with it.
        """
        return denoise(x_t, t).x0, state

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:  # noqa: B027 (most samplers run anywhere)
        """Refusal of a run, before the first evaluation, by a ValueError. Most samplers run anywhere.

        Args:
            denoiser: What would be sampled from.
            points: Scales of every time of the run, in the order of the run.
        """

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        """The times between the grid's at which the steps evaluate the network, of all steps at once.

        They are computed before the loop, which then reads no schedule back; `step` finds their scales in
        `denoise.inner`.

        Args:
            denoiser: Its process and its limits t_min and t_max.
            t: Scales of the starts of the N steps, tensors of shape (N,).
            s: Scales of their ends, (N,).
            total: Sampling steps, N or (with the posterior mean at the end) N + 1.

        Returns:
            (N, k) float64: k times for each step.
        """
        return torch.empty(len(t.time), 0, dtype=torch.float64)

    def init(self, denoiser: Denoiser, points: list[Scales], total: int) -> Any:
        """The state that the first step takes, made before the loop from the times of the whole run.

        A solver whose steps differ by their place in the run computes all its coefficients here.

        Args:
            denoiser: What is sampled from.
            points: Scales of the ends of the N steps, N + 1 of them.
            total: Sampling steps, N or (with the posterior mean at the end) N + 1.

        Returns:
            Any value; None where a solver needs no state.
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
        seed: int | Sequence[int] = 0,
        end: End | None = None,
    ) -> Iterator[Step]:
        """Run the sampler, yielding every step.

        Args:
            denoiser: A network read as a posterior mean, or a guidance around one.
            initial_noise: (B, C, H, W) standard normal, scaled here to the prior of the first time; its dtype
                (float32 or float64) is that of the states.
            steps: Sampling steps, at least 1; None where the grid fixes their number.
            labels: (B,) class labels; None for the denoiser's own, or null.
            grid: A TimeGrid, a registered name or mapping, or decreasing times in [0, 1]; None for the sampler's
                `grid_for` the process.
            initial_state: (B, C, H, W), a state at the first time, in place of noise.
            state: `Step.state` that came with initial_state; None for what `init` makes.
            noise_source: Of the noise that stochastic steps add; None for `NoiseSource.from_seed(seed)`.
            seed: Of the noise source, where none is given: one seed, or one an image.
            end: 'posterior-mean' stops at the last time with sigma > 0 and returns E[x0 | x_t] there; 'state'
                returns x at the grid's last time; 'clean' takes one more step of the solver, from there to t = 0,
                where sigma is 0. None for the sampler's `end_for` the process.

        Returns:
            An iterator over the steps. The arguments are checked at once, before the first step is taken.

        Raises:
            ValueError: steps < 1; times that do not decrease; noise to start from at a time that has more signal
                than noise; an unknown grid or end; 'clean' on a process with noise at t = 0; a guidance that the
                sampler would ignore; a run that it refuses.
        """
        check_denoiser(denoiser)
        x = initial_noise if initial_state is None else initial_state
        _check_start("initial_noise" if initial_state is None else "initial_state", x)
        if noise_source is not None and not hasattr(noise_source, "normal"):
            raise ValueError(f"noise_source must be a NoiseSource, got {shown(noise_source)}; see also seed=")
        end = self.end_for(denoiser.process) if end is None else end
        length = steps if isinstance(steps, int) else number_of_times(grid)
        solver = self if length is None else self.chosen(length - (end == "state"))
        if grid is None and length is not None:
            grid = self.grid_for_run(denoiser.process, length - (end == "state"))
        points = sampling_points(denoiser, steps, self.grid_for(denoiser.process) if grid is None else grid, end)
        source: SupportsNormal = noise_source or NoiseSource.from_seed(seed, x.shape[0])
        cond = denoiser.condition(labels, x.shape[0], x.device)
        run = Run.prepare(solver, denoiser, points, len(points) - (end != "posterior-mean"), cond, source, state)
        given = isinstance(grid, Tensor | Times | Sequence) and not isinstance(grid, str)
        if not given:  # times given one by one are their owner's choice
            from dinit.samplers.rehearsal import warn_of_spread

            warn_of_spread(run, end, SAMPLERS.create, own_state=state is None)
        if initial_state is None:
            check_noisy_start(points[0])
            x = x * denoiser.process.prior_std(points[0])
        return run.iterate(x)

    def sample(
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
        seed: int | Sequence[int] = 0,
        end: End | None = None,
    ) -> Tensor:
        """The end of the trajectory, (B, C, H, W). Arguments and errors as `iterate`."""
        if not isinstance(self, Sampler):
            raise ValueError("a sampler is an object, and this is the class: make one, as in DDIM().sample(...)")
        trajectory = self.iterate(
            denoiser,
            initial_noise,
            steps,
            labels=labels,
            grid=grid,
            initial_state=initial_state,
            state=state,
            noise_source=noise_source,
            seed=seed,
            end=end,
        )
        (last,) = deque(trajectory, maxlen=1)
        return last.x_s

    def describe(
        self, process: Process | str, steps: int | None = None, grid: GridLike | None = None
    ) -> Description:
        """A table of a run: its times and their scales, evaluations so far, and the weights of every step.

        Args:
            process: A Process, or a registered name.
            steps: Sampling steps, at least 1; None where the grid fixes their number.
            grid: As in `iterate`.

        Returns:
            A Description, which prints as a table; its rows hold the numbers. Samplers whose steps are not linear
            in x_t and the posterior means (adaptive, norms) have no weights.
        """
        from dinit.samplers.step_table import describe

        return describe(self, process, steps, grid)

    def nfe(self, steps: int) -> int:
        """Network evaluations per image of a run of `steps` sampling steps, the last posterior mean included."""
        return (steps - 1) * self.claims().nfe_per_step + 1


SamplerSpec = Sampler | str | Mapping[str, Any]
"""A sampler, or a name or a mapping with options, from which the registry makes one."""


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
        _check_required_outputs(sampler, denoiser)
        sampler.check(denoiser, points)
        cond = cond.in_run(RunContext(noise_source=noise_source, steps=total))
        inner = _inner_points(sampler, denoiser, points, total)
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


def _check_start(name: str, x: object) -> None:
    """ValueError unless a run can start from x."""
    if not isinstance(x, Tensor):
        advice = "; torch.from_numpy makes one of an array" if type(x).__name__ == "ndarray" else ""
        raise ValueError(f"{name} must be a (B, C, H, W) tensor, got {shown(x)}{advice}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be of a floating-point dtype, such as torch.float32, got {x.dtype}")
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"{name} must have at least one sample, got shape {tuple(x.shape)}")


def _check_required_outputs(sampler: Sampler, denoiser: Denoiser) -> None:
    """An output besides x0 that the sampler ignores would change the images without an error."""
    required = denoiser.required_outputs
    if ignored := required - sampler.claims().supported_outputs:
        fits = [name for name in SAMPLERS if required <= SAMPLERS.create(name).claims().supported_outputs]
        raise ValueError(
            f"this guidance returns {' and '.join(sorted(ignored))}, which {type(sampler).__name__} ignores; "
            f"samplers that use it: {', '.join(fits) or 'none'}"
        )


def _inner_points(
    sampler: Sampler, denoiser: Denoiser, points: list[Scales], total: int
) -> list[tuple[Scales, ...]]:
    """The scales of every step's inner times, one tuple a step."""
    if len(points) < 2 or type(sampler).inner_times is Sampler.inner_times:
        return [()] * (len(points) - 1)
    t, s = Scales.stack(points[:-1]), Scales.stack(points[1:])
    inner = sampler.inner_times(denoiser, t, s, total)
    if inner.numel() == 0:
        return [()] * (len(points) - 1)
    rows = denoiser.process.scales(inner.flatten()).unbind()
    _ = rows[0].floats  # all are read back here, so that the loop does not
    width = inner.shape[1]
    return [tuple(rows[i : i + width]) for i in range(0, len(rows), width)]
