"""Samplers: the contract, the registry, and what a call of any of them checks and chooses; run.py has the loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from dinit.arguments import shown
from dinit.diffusion import Denoiser, Process, Scales
from dinit.diffusion.condition import SupportsNormal
from dinit.diffusion.denoiser import check_denoiser
from dinit.registry import Registry
from dinit.samplers._names import advise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.grids.default import default_grid
from dinit.samplers.grids.times import Times
from dinit.samplers.noise import NoiseSource
from dinit.samplers.points import End, GridLike, check_noisy_start, number_of_times, sampling_points
from dinit.samplers.run import Run, Step, StepDenoiser, StepNoise

if TYPE_CHECKING:
    from dinit.samplers.step_table import Description

SAMPLERS: Registry[type[Sampler]] = Registry("sampler", "dinit.samplers", advise=advise)


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

    def check_end(self, x0: Tensor) -> None:  # noqa: B027 (most know nothing of their samples)
        """A warning where the end of a run cannot be a sample of what is sampled from; once a run.

        Args:
            x0: (B, C, H, W), without noise.
        """

    def check_outputs(self, denoiser: Denoiser) -> None:
        """Refusal of a guidance whose outputs besides x0 the steps ignore: it would change images without an error.

        Args:
            denoiser: What would be sampled from.

        Raises:
            ValueError: It requires an output that the claims do not list.
        """
        required = denoiser.required_outputs
        if ignored := required - self.claims().supported_outputs:
            fits = [name for name in SAMPLERS if required <= SAMPLERS.create(name).claims().supported_outputs]
            raise ValueError(
                f"this guidance returns {' and '.join(sorted(ignored))}, which {type(self).__name__} ignores; "
                f"samplers that use it: {', '.join(fits) or 'none'}"
            )

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

    def inner_points(self, denoiser: Denoiser, points: list[Scales], total: int) -> list[tuple[Scales, ...]]:
        """The scales of `inner_times`, one tuple a step.

        Args:
            denoiser: What is sampled from.
            points: Scales of the ends of the N steps, N + 1 of them.
            total: Sampling steps, N or (with the posterior mean at the end) N + 1.
        """
        if len(points) < 2 or type(self).inner_times is Sampler.inner_times:
            return [()] * (len(points) - 1)
        inner = self.inner_times(denoiser, Scales.stack(points[:-1]), Scales.stack(points[1:]), total)
        if inner.numel() == 0:
            return [()] * (len(points) - 1)
        rows = denoiser.process.scales(inner.flatten()).unbind()
        _ = rows[0].floats  # all are read back here, so that the loop does not
        width = inner.shape[1]
        return [tuple(rows[i : i + width]) for i in range(0, len(rows), width)]

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


def _check_start(name: str, x: object) -> None:
    """ValueError unless a run can start from x."""
    if not isinstance(x, Tensor):
        advice = "; torch.from_numpy makes one of an array" if type(x).__name__ == "ndarray" else ""
        raise ValueError(f"{name} must be a (B, C, H, W) tensor, got {shown(x)}{advice}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be of a floating-point dtype, such as torch.float32, got {x.dtype}")
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(f"{name} must have at least one sample, got shape {tuple(x.shape)}")
