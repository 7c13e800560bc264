"""One run of a diffusers scheduler: its timesteps as times of the process, and its calls.

A scheduler keeps the trajectory's history in itself, so every run makes one of its own from class name and config.
Its tables are float32, and so is what it computes, whatever the state's dtype.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dinit.checkpoints.interop.scheduler_config import CHAIN_SCHEDULERS
from dinit.checkpoints.interop.scheduler_config import build as construct_scheduler
from dinit.diffusion import Denoised, Parameterization, Process, Scales
from dinit.diffusion.discrete import BetaChain
from dinit.samplers.base import StepDenoiser, StepNoise

# Their state is x_t / alpha_t, as in k-diffusion; the others' is x_t.
_OVER_ALPHA = (
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
)
# Settings that choose noise levels first and round timesteps from them.
_LEVELS_FIRST = (
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_lu_lambdas",
    "use_flow_sigmas",
)
_SPLITS_VARIANCE = ("DDPMParallelScheduler", "DDPMScheduler")


def build(name: str, config: Mapping[str, Any]) -> Any:
    """A new scheduler of diffusers' class `name`. ValueError where diffusers makes none of the config."""
    scheduler = construct_scheduler(name, config)
    if name not in _SPLITS_VARIANCE and scheduler.config.get("variance_type") is not None:
        # It would keep three channels of the output, RGB without its variance; here there is no variance to cut.
        scheduler.register_to_config(variance_type=None)
    return scheduler


@dataclass(frozen=True)
class NetworkCall:
    """One network evaluation of a step.

    Attributes:
        timestep: The scheduler's, 0-dimensional.
        state: Scales of the state.
        network: The same at the time that the network takes: the timestep, which is rounded where the scheduler
            chooses noise levels first.
    """

    timestep: Tensor
    state: Scales
    network: Scales


@dataclass
class SchedulerRun:
    """A scheduler in the middle of a run, with its calls grouped into steps. The one state that changes in place.

    Attributes:
        scheduler: Of diffusers.
        parameterization: What it reads a network's output as.
        groups: For each step its network evaluations.
        over_alpha: Whether its state is x_t / alpha_t.
        options: Further arguments of its `step`.
        taken: Steps taken.
    """

    scheduler: Any
    parameterization: Parameterization
    groups: list[list[NetworkCall]]
    over_alpha: bool
    options: Mapping[str, Any]
    taken: int = 0

    @property
    def times(self) -> Tensor:
        """(steps,) float64, decreasing: where each step starts."""
        return torch.stack([calls[0].state.time for calls in self.groups])

    @property
    def start_std(self) -> float:
        """Standard deviation of the noise that the scheduler starts from, in units of x_t."""
        std = float(getattr(self.scheduler, "init_noise_sigma", 1.0))
        return std * float(self.groups[0][0].state.alpha) if self.over_alpha else std

    def step(self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, noise: StepNoise) -> Tensor:
        """From x_t at t, where the next step starts, to x_s: all calls of one step."""
        x = x_t / t.alpha if self.over_alpha else x_t
        keyed = _KeyedNoise(noise, x_t)
        for call in self.groups[self.taken]:
            output = self._output(denoise(x * call.state.alpha if self.over_alpha else x, call.network))
            with keyed:
                x = self.scheduler.step(output, call.timestep, x, return_dict=False, **self.options)[0].to(
                    x_t.dtype
                )
        self.taken += 1
        return x * s.alpha if self.over_alpha else x

    def _output(self, denoised: Denoised) -> Tensor:
        """The output of a network of the scheduler's prediction type."""
        output = self.parameterization.target(denoised.x0, denoised.eps, denoised.scales)
        if not learns_variance(self.scheduler):
            return output
        assert denoised.variance_fraction is not None, "the sampler's check has made sure of it"
        return torch.cat([output, 2 * denoised.variance_fraction - 1], dim=1)


def learns_variance(scheduler: Any) -> bool:
    """Whether the scheduler reads a learned variance besides the prediction."""
    return type(scheduler).__name__ in _SPLITS_VARIANCE and scheduler.config["variance_type"] == "learned_range"


def start(
    name: str,
    config: Mapping[str, Any],
    options: Mapping[str, Any],
    process: Process,
    parameterization: Parameterization,
    steps: int,
) -> SchedulerRun:
    """A run of `steps` steps on the process. ValueError where the scheduler makes another number of them."""
    scheduler = build(name, config)
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else it looks for the first timestep among all
    if hasattr(scheduler, "is_scale_input_called"):
        scheduler.is_scale_input_called = True  # the scaling is ours
    _check_timesteps(name, scheduler)
    states = process.scales(_times(name, scheduler, process)).unbind()
    calls: list[NetworkCall] = []
    for timestep, k in zip(scheduler.timesteps, states, strict=True):
        calls.append(NetworkCall(timestep, k, _of_timestep(k, timestep.double(), scheduler, process)))
        _ = k.floats, calls[-1].network.floats  # read back here, so that the loop does not
    groups, first = [], 0
    for size in _sizes(name, scheduler):
        groups.append(calls[first : first + size])
        first += size
    if len(groups) != steps:
        raise ValueError(f"{name} makes {len(groups)} steps of {steps}: give another number of steps")
    return SchedulerRun(scheduler, parameterization, groups, name in _OVER_ALPHA, options)


def _check_timesteps(name: str, scheduler: Any) -> None:
    """ValueError for a timestep that the network was not trained on."""
    last, count = float(scheduler.timesteps.max()), scheduler.config["num_train_timesteps"]
    if name in CHAIN_SCHEDULERS and not scheduler.config.get("use_flow_sigmas") and last > count - 1:
        raise ValueError(
            f"it would evaluate the network at timestep {last:g}, beyond the last of {count}: take fewer steps, or "
            f"a smaller steps_offset than {scheduler.config.get('steps_offset', 0)}"
        )


def _of_timestep(k: Scales, timestep: Tensor, scheduler: Any, process: Process) -> Scales:
    """Scales with which a network's time input is that timestep."""
    if isinstance(process, BetaChain):
        return replace(k, time=(timestep + 1) / process.num_steps)
    if scheduler.config.get("use_flow_sigmas"):  # 1000 sigma, rounded; the output does not depend on the scales
        return process.scales(process.time_of_noise_level(timestep / (1000 - timestep)))
    return k


def _times(name: str, scheduler: Any, process: Process) -> Tensor:
    """The times of the network's calls, (calls,) float64: from the noise levels where the scheduler has them.

    The scheduler computes with its noise levels; its timesteps are rounded where noise levels were chosen first.
    Elsewhere a timestep may be one of the chain, and is one where its noise level is the chain's up to float32.
    """
    timesteps = scheduler.timesteps.double()
    levels = (timesteps + 1) / process.num_steps
    if getattr(scheduler, "sigmas", None) is None:
        return levels
    noise = scheduler.sigmas[: len(timesteps)].double().clone()
    if (between := getattr(scheduler, "sigmas_interpol", None)) is not None:  # a second-order step's middle
        late = "Ancestral" in name
        noise[1::2] = between[0 if late else 1 :: 2][: len(noise[1::2])].double()
    if scheduler.config.get("use_flow_sigmas", name.startswith("FlowMatch")):
        noise = noise / (1 - noise)
    times = process.time_of_noise_level(noise)
    if not bool(times.isfinite().all()):
        raise ValueError(f"{name} has a noise level that is no number: {float(noise[~times.isfinite()][0])}")
    if float(times.max()) > 1 + 1e-6 or float(times.min()) < -1e-6:
        raise ValueError(
            f"{name} goes from noise level {float(noise[0]):.4g} to {float(noise[-1]):.4g}, and the denoiser's "
            f"{process} has levels {_ends(process)} only: make it with a sigma_min and sigma_max within"
        )
    times = times.clamp(0, 1)
    if name not in CHAIN_SCHEDULERS or any(scheduler.config.get(one) for one in _LEVELS_FIRST):
        return times
    on_chain = (timesteps == timesteps.round()) & ((times - levels).abs() * process.num_steps < 0.01)
    return torch.where(on_chain, levels, times)


def _ends(process: Process) -> str:
    low, high = (float(process.scales(t).noise_level) for t in (0.0, 1.0))
    return f"{low:.4g} to {high:.4g}"


def _sizes(name: str, scheduler: Any) -> list[int]:
    """Network evaluations of each step."""
    calls, order = len(scheduler.timesteps), scheduler.order
    if name == "PNDMScheduler":  # three steps of Runge-Kutta first, or one of Heun
        warm = [4, 4, 4] if len(scheduler.prk_timesteps) else [min(2, calls)]
        return warm + [1] * (calls - sum(warm))
    return [order] * (calls // order) + [calls % order] * (calls % order > 0)


class _KeyedNoise(TorchFunctionMode):
    """While it is entered, torch.randn gives a step's keyed noise: an image's noise is its own, whatever the batch.

    The schedulers draw through diffusers' randn_tensor, which calls torch.randn and nothing else.
    """

    def __init__(self, noise: StepNoise, like: Tensor) -> None:
        super().__init__()
        self.noise, self.like, self.drawn = noise, like, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.randn:
            return func(*args, **(kwargs or {}))
        self.drawn += 1
        return self.noise(self.drawn - 1, self.like)
