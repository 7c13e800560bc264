"""The diffusers scheduler of a process and a parameterization: the inverse of `read_scheduler`."""

from __future__ import annotations

from typing import Any

from dinit.checkpoints.exporting import beta_arguments
from dinit.checkpoints.interop.schedule import read_scheduler
from dinit.checkpoints.interop.scheduler_sampler import check_path, same_prediction
from dinit.diffusion import Parameterization, Process
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.diffusion.discrete import VPBetas, VPDiscrete
from dinit.diffusion.parameterization import X0, EDMPreconditioning, Epsilon, V

_PREDICTIONS = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": V()}


def training_scheduler(process: Process, parameterization: Parameterization, learns_variance: bool = False) -> Any:
    """The diffusers scheduler whose config has the process and parameterization of a network.

    A chain of betas is a DDPMScheduler without clipping, a linear flow a FlowMatchEulerDiscreteScheduler, EDM an
    EDMEulerScheduler. `OtherScheduler.from_config(scheduler.config)` has the same schedule and prediction type.

    Args:
        process: what the network was trained on.
        parameterization: what its output means.
        learns_variance: whether the second half of its channels is DDPM's learned range.

    Raises:
        ValueError: diffusers has no scheduler for the pair.
    """
    import diffusers

    # Any: registered classes are untyped, and diffusers exports lazily.
    library: Any = diffusers
    path: Any = process
    output: Any = parameterization
    made = None
    if isinstance(path, VPDiscrete | VPBetas):
        prediction = _prediction(process, parameterization)
        if prediction is not None:
            # What is not given, from_config leaves to the default of the scheduler that it makes.
            settings = {**_schedule(path), "prediction_type": prediction, "clip_sample": False}
            if learns_variance:
                settings["variance_type"] = "learned_range"
            if path.zero_terminal_snr:  # sampling must begin at the noisiest timestep: Lin et al. 2023
                settings["timestep_spacing"] = "trailing"
            made = library.DDPMScheduler(**settings)
    elif isinstance(path, LinearFlow):
        made = library.FlowMatchEulerDiscreteScheduler(shift=path.shift)
    elif isinstance(path, EDM) and isinstance(output, EDMPreconditioning):
        made = library.EDMEulerScheduler(
            sigma_min=path.sigma_min, sigma_max=path.sigma_max, sigma_data=output.sigma_data
        )
    if made is None or not _means(made, process, parameterization):
        raise ValueError(
            f"diffusers has no scheduler for a network that was trained on {process} and predicts "
            f"{parameterization}: take one of dinit's samplers, which run on any process (sampler=, pipe.sampler)"
        )
    return made


def _schedule(process: Any) -> dict[str, Any]:
    if isinstance(process, VPDiscrete):
        return beta_arguments(process)
    return {
        "num_train_timesteps": process.num_steps,
        "trained_betas": list(process.betas),
        "rescale_betas_zero_snr": process.zero_terminal_snr,
    }


def _prediction(process: Process, parameterization: Parameterization) -> str | None:
    fits = [name for name, one in _PREDICTIONS.items() if same_prediction(parameterization, one, process)]
    return fits[0] if fits else None


def _means(scheduler: Any, process: Process, parameterization: Parameterization) -> bool:
    """Whether the scheduler, read back, is on the same path and of the same prediction."""
    theirs, prediction = read_scheduler(scheduler)
    try:
        check_path(type(scheduler).__name__, theirs, process)
    except ValueError:
        return False
    return same_prediction(parameterization, prediction, process)
