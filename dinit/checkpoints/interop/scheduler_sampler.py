"""diffusers schedulers as samplers: the same samples as diffusers' own loop, or an error with the reason."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dinit.checkpoints.interop.first_interval import check_first_interval
from dinit.checkpoints.interop.schedule import read_scheduler
from dinit.checkpoints.interop.scheduler_config import (
    CHAIN_SCHEDULERS,
    FAILURES,
    SCHEDULERS,
    TREE,
    arguments,
    checked,
    refused,
)
from dinit.checkpoints.interop.scheduler_run import SchedulerRun, build, learns_variance, start
from dinit.diffusion import Denoised, Denoiser, Parameterization, Process, Scales
from dinit.diffusion.condition import SupportsNormal
from dinit.diffusion.discrete import BetaChain
from dinit.diffusion.parameterization import X0, Epsilon, V, check_pair
from dinit.samplers import GRIDS, SAMPLERS, Sampler, Step, TimeGrid
from dinit.samplers.base import Claims, StepDenoiser, StepNoise
from dinit.samplers.points import End, GridLike, checked_steps

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

NAME = "diffusers"  # in the record of a call; not listed, as a sampler of this name needs a scheduler's class
KNOWN = tuple(name for name in SCHEDULERS if name != TREE)
PREDICTIONS = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": V()}
_OURS = ("self", "model_output", "timestep", "sample", "generator", "variance_noise", "return_dict")


def sampler_from_diffusers(scheduler: SchedulerMixin, options: Mapping[str, Any] | None = None) -> SchedulerSampler:
    """A diffusers scheduler as a sampler, for `pipe(labels, sampler=..., steps=20)` and any denoiser.

    Args:
        scheduler: Of one of diffusers' own classes. Its class and config are read; it is left as it is.
        options: Further arguments of its `step`, such as {"eta": 1.0} for DDIMScheduler.

    Returns:
        The sampler, which makes such a scheduler for every run.

    Raises:
        ValueError: A class or a setting that is not covered; an option that its `step` does not have.
    """
    import diffusers

    name = type(scheduler).__name__
    if getattr(diffusers, name, None) is not type(scheduler) or not hasattr(scheduler, "set_timesteps"):
        raise ValueError(
            f"give an object of one of diffusers' scheduler classes, got {type(scheduler)}: every run makes a new "
            "scheduler from class and config, which may not be enough for other classes"
        )
    configured: Any = scheduler  # diffusers has the config in another mixin
    settings = configured.config
    config = {key: _plain(settings[key]) for key in arguments(name) if key in settings}
    if (shift := vars(scheduler).get("_shift", config.get("shift"))) != config.get("shift"):
        raise ValueError(
            f"this {name} has another shift, {shift}, than its config, {config['shift']}: make one with "
            f"{name}.from_config(scheduler.config, shift={shift}) in place of set_shift"
        )
    return SchedulerSampler(name, config, options or {})


@GRIDS.register(NAME, listed=False)
@dataclass(frozen=True)
class SchedulerGrid(TimeGrid):
    """The times at which a diffusers scheduler starts its steps, for any sampler. ValueError on another path.

    Args:
        scheduler: Name of its class in diffusers.
        config: Its config.
    """

    scheduler: str
    config: Mapping[str, Any] = field(default_factory=dict)

    def times(self, process: Process, steps: int, t_min: float, t_max: float) -> Tensor:
        return SchedulerSampler(self.scheduler, self.config).run(process, steps).times


@SAMPLERS.register(NAME, listed=False)
@dataclass(frozen=True)
class SchedulerSampler(Sampler):
    """A diffusers scheduler as a sampler, by class name and config; every run makes the scheduler for itself.

    A step is all of the scheduler's calls that belong to one of its `num_inference_steps`; the last one goes down
    to its own final sigma. It starts from the noise that diffusers would scale for it. The posterior mean is
    converted to the prediction type that the scheduler reads, and noise comes from the keyed source. The schedule
    and the prediction type are compared with the denoiser's before the first network evaluation.

    Args:
        scheduler: Name of its class in diffusers, one of KNOWN.
        config: Its config.
        options: Further arguments of its `step`.

    Raises:
        ValueError: A class, a setting or an option that is not covered.
    """

    scheduler: str
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    _trained: tuple[Process, Parameterization] = field(init=False, repr=False, compare=False)
    _plain_step: tuple[int, int] = field(init=False, repr=False, compare=False, default=(1, 0))

    def __post_init__(self) -> None:
        if self.scheduler == TREE:
            raise ValueError(f"{TREE} draws noise that no image's seed determines: use dinit's 'dpmpp-sde'")
        if self.scheduler not in KNOWN:
            raise ValueError(f"{self.scheduler} is not covered as a sampler (known: {', '.join(KNOWN)})")
        object.__setattr__(self, "config", checked(self.scheduler, self.config, self.scheduler))
        made = build(self.scheduler, self.config)
        accepted = [name for name in inspect.signature(type(made).step).parameters if name not in _OURS]
        if unknown := [name for name in self.options if name not in accepted]:
            raise ValueError(
                f"the step of {self.scheduler} has no {', '.join(unknown)} (it takes: "
                f"{', '.join(accepted) or 'nothing more'})"
            )
        if made.config.get("variance_type") == "learned":
            raise ValueError("variance_type='learned' is not covered; a learned variance is 'learned_range' here")
        try:
            object.__setattr__(self, "_trained", read_scheduler(made))
        except ValueError as error:  # what follows the semicolon is advice for those who bring a network
            raise ValueError(str(error).rpartition("; ")[0]) from error
        object.__setattr__(self, "_plain_step", self._rehearsed())

    def claims(self) -> Claims:
        nfe, draws = self._plain_step
        return Claims(nfe_per_step=nfe, draws_per_step=draws)

    @property
    def own_grid(self) -> TimeGrid:
        return SchedulerGrid(self.scheduler, self.config)

    def run(self, process: Process, steps: int) -> SchedulerRun:
        """A new run of the scheduler.

        Args:
            process: The denoiser's path, which has to be the scheduler's.
            steps: `num_inference_steps`, at least 1.

        Returns:
            The run, with the times of all its network evaluations.

        Raises:
            ValueError: Another path than the scheduler's; a number of steps that it does not make.
        """
        expected, parameterization = self._trained
        check_path(self.scheduler, expected, process)
        make = lambda config: start(self.scheduler, config, self.options, process, parameterization, steps)  # noqa: E731
        try:
            return make(self.config)
        except FAILURES as error:
            raise refused(self.scheduler, self.config, "", error, make) from error

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: SchedulerRun, noise: StepNoise
    ) -> tuple[Tensor, SchedulerRun]:
        numbered = replace(noise, draws_per_step=len(state.groups[0]))  # at most one draw a call
        return state.step(denoise, x_t, t, s, numbered), state

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        _, parameterization = self._trained
        _check_prediction(self, parameterization, denoiser)
        if learns_variance(build(self.scheduler, self.config)) and not denoiser.learns_variance:
            raise ValueError(
                "variance_type = 'learned_range' needs a network that learned its variance, and this one did not: "
                "make the scheduler with variance_type='fixed_small' or 'fixed_large'"
            )
        check_pair(denoiser.process, parameterization, points[0].floats.time)
        check_first_interval(self, denoiser.process, len(points))

    def finish(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, state: SchedulerRun, noise: StepNoise
    ) -> tuple[Tensor, SchedulerRun]:
        """The scheduler's own last step, down to its final sigma, in place of the posterior mean."""
        return self.step(denoise, x_t, t, denoise.process.scales(0.0), state, noise)

    def iterate(
        self,
        denoiser: Denoiser,
        initial_noise: Tensor,
        steps: int | None = None,
        *,
        labels: Tensor | Sequence[int] | None = None,
        grid: GridLike | None = None,
        initial_state: Tensor | None = None,
        state: None = None,
        noise_source: SupportsNormal | None = None,
        seed: int | Sequence[int] = 0,
        end: End | None = None,
    ) -> Iterator[Step]:
        """Run the scheduler, yielding every step. Arguments as in `Sampler.iterate`, with these differences.

        Args:
            denoiser: On the scheduler's path, predicting what the scheduler reads.
            initial_noise: (B, C, H, W) standard normal, scaled as diffusers scales it for this scheduler.
            steps: diffusers' `num_inference_steps`, at least 1.
            labels: (B,) class labels; None for the denoiser's own, or null.
            grid: None, or the sampler's own grid.
            initial_state: (B, C, H, W), a state x_t at the first of the scheduler's times.
            state: None; a scheduler starts without history.
            noise_source: Of the noise that stochastic schedulers add; None for `NoiseSource.from_seed(seed)`.
            seed: Of the noise source, where none is given: one seed, or one an image.
            end: None or 'posterior-mean'; a scheduler ends by itself.

        Returns:
            An iterator over the steps.

        Raises:
            ValueError: Another grid; a state or an end; steps < 1, or so few that the first time has more signal
                than noise; a denoiser on another path, or with another prediction.
        """
        if grid is not None and not (isinstance(grid, SchedulerGrid) and grid == self.own_grid):
            raise ValueError(_own_times(self.scheduler))
        if state is not None or end not in (None, "posterior-mean"):
            raise ValueError(f"{self.scheduler} starts without history and ends by itself: leave out state and end")
        run = self.run(denoiser.process, checked_steps(steps))
        first = run.groups[0][0].state
        if initial_state is None and float(first.noise_level) < 1:
            raise ValueError(
                f"{steps} steps of {self.scheduler} start at t = {first.floats.time:.3g}, where x_t is more image "
                "than noise: take more steps, make it with timestep_spacing='trailing', or give initial_state="
            )
        return super().iterate(
            denoiser,
            initial_noise,
            labels=labels,
            grid=run.times,
            initial_state=initial_noise * run.start_std if initial_state is None else initial_state,
            state=run,
            noise_source=noise_source,
            seed=seed,
        )

    def nfe(self, steps: int) -> int:
        scheduler = build(self.scheduler, self.config)
        scheduler.set_timesteps(steps)
        return len(scheduler.timesteps)

    @property
    def clips(self) -> bool:
        """Whether the scheduler clips or thresholds the posterior mean by itself."""
        return any(self.config.get(key, default) for key, default in _clipping(self.scheduler).items())

    def _rehearsed(self) -> tuple[int, int]:
        """Calls and draws of a plain step. ValueError, with the keys at fault, for a config that cannot run."""
        try:
            return self._rehearse(self.config)
        except FAILURES as error:
            raise refused(self.scheduler, self.config, "", error, self._rehearse) from error

    def _rehearse(self, config: Mapping[str, Any]) -> tuple[int, int]:
        """Calls and draws of a plain step. ValueError where all runs give values that are no numbers."""
        for steps in (10, 50):
            counted = self._counted(config, min(steps, self._trained[0].num_steps))
            if counted is not None:
                return counted
        raise ValueError("its steps give values that are no numbers")

    def _counted(self, config: Mapping[str, Any], steps: int) -> tuple[int, int] | None:
        """Calls and draws of a plain step, counted on one black pixel; None where that gets no finite value."""
        process, parameterization = self._trained
        run = start(self.scheduler, config, self.options, process, parameterization, steps)
        pixel, counted = torch.zeros(1, 1, 1, 1), _Counted()
        fraction = pixel if learns_variance(run.scheduler) else None
        for i, calls in enumerate(run.groups):
            k = calls[0].state
            denoise: Any = lambda x, k: Denoised(x, pixel, k, fraction)  # noqa: E731
            if not bool(run.step(denoise, pixel, k, k, StepNoise(counted, i, 1)).isfinite().all()):
                return None
        return len(run.groups[-2:][0]), -(-counted.draws // len(run.groups))


class _Counted:
    """A noise source of zeros that counts its draws."""

    draws = 0

    def normal(self, stream: str, number: int, like: Tensor) -> Tensor:
        self.draws += 1
        return torch.zeros_like(like)


def check_path(name: str, expected: Process, process: Process) -> None:
    """ValueError unless both are the same chain, or the same continuous path, whatever its time."""
    if isinstance(expected, BetaChain):
        t = torch.arange(1, expected.num_steps + 1, dtype=torch.float64) / expected.num_steps
        theirs, ours = expected.scales(t), process.scales(t)
        same_levels = process.num_steps == expected.num_steps
    else:
        log_snr = torch.linspace(-4, 4, 33, dtype=torch.float64)
        theirs, ours = (p.scales(p.time_of(log_snr)) for p in (expected, process))
        same_levels = True
    apart = torch.maximum((theirs.alpha - ours.alpha).abs(), (theirs.sigma - ours.sigma).abs()).max()
    if not (same_levels and float(apart) < 1e-4):
        raise ValueError(
            f"{name} was made for {expected}, and the denoiser is on {process}: it would take its steps at wrong "
            "noise levels. Make it from the schedule that the network was trained on (from_config with the config "
            "of the network's own scheduler), or take one of dinit's samplers, which run on any process"
        )


def _check_prediction(sampler: SchedulerSampler, expected: Parameterization, denoiser: Denoiser) -> None:
    """ValueError where the network is known to predict something else than the scheduler is set to."""
    given = _parameterization(denoiser)
    if given is None or same_prediction(given, expected, denoiser.process):
        return
    fits = [name for name, one in PREDICTIONS.items() if same_prediction(given, one, denoiser.process)]
    advice = "take one of dinit's samplers, which read any prediction"
    if fits and sampler.scheduler in CHAIN_SCHEDULERS:
        advice = f"make it with prediction_type='{fits[0]}'"
    setting = sampler.config.get("prediction_type")
    setting = f" (prediction_type={setting!r})" if setting else ""
    raise ValueError(
        f"{sampler.scheduler} reads the network's output as {expected}{setting}, "
        f"and the denoiser's network predicts {given}: {advice}"
    )


def _parameterization(denoiser: Denoiser) -> Parameterization | None:
    """What the network under the guidance predicts; None for a denoiser that is no network's."""
    under: Denoiser | None = denoiser
    while under is not None and not hasattr(under, "parameterization"):
        under = getattr(under, "inner", None)
    return getattr(under, "parameterization", None)


def same_prediction(one: Parameterization, other: Parameterization, process: Process) -> bool:
    """Whether the two differ by a factor alone: a velocity in any time; a score and eps."""
    k = process.scales(torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    (p, q), (u, v) = one.coefficients(k), other.coefficients(k)
    return bool(((p * v - q * u).abs() <= 1e-6 * torch.hypot(p, q) * torch.hypot(u, v)).all())


def _clipping(name: str) -> dict[str, bool]:
    """The switches of clipping that a scheduler has, each with its default."""
    accepted = arguments(name)
    return {key: accepted[key] for key in ("clip_sample", "thresholding") if key in accepted}


def _own_times(name: str) -> str:
    return f"{name} places its own times, by its config and the number of steps: leave the grid out"


def _plain(value: Any) -> Any:
    """Arrays and tuples as lists, as they are read back from JSON."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
