"""Between the scheduler configs of diffusers and a process with its parameterization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES
from dinit.diffusion.discrete import VPDiscrete

_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "squared-cosine"}
_PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}


def training_of(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(process, parameterization) that a scheduler_config.json states. ValueError for a kind without betas."""
    schedule, prediction = config.get("beta_schedule"), config.get("prediction_type", "epsilon")
    if schedule not in _SCHEDULES or prediction not in _PREDICTIONS or config.get("trained_betas") is not None:
        raise ValueError(
            f"the scheduler {config.get('_class_name')} with beta_schedule {schedule!r}, prediction_type "
            f"{prediction!r} is not read; read are {', '.join(_SCHEDULES)} with {', '.join(_PREDICTIONS)}: give "
            "process and parameterization"
        )
    process: dict[str, Any] = {
        "name": "vp-discrete",
        "schedule": _SCHEDULES[schedule],
        "num_steps": config.get("num_train_timesteps", 1000),
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    if schedule != "squaredcos_cap_v2":
        process |= {"beta_start": config.get("beta_start", 1e-4), "beta_end": config.get("beta_end", 0.02)}
    return process, {"name": _PREDICTIONS[prediction]}


def scheduler_of(process: Any, parameterization: Any) -> dict[str, Any]:
    """The arguments of diffusers' DDIMScheduler for them. ValueError where diffusers has no such training."""
    process, parameterization = PROCESSES.create(process), PARAMETERIZATIONS.create(parameterization)
    schedules = {**{ours: theirs for theirs, ours in _SCHEDULES.items()}, "cosine": "squaredcos_cap_v2"}
    predictions = {ours: theirs for theirs, ours in _PREDICTIONS.items()}
    name: str = parameterization.registry_name  # type: ignore[attr-defined]
    if not isinstance(process, VPDiscrete) or name not in predictions:
        raise ValueError(
            f"diffusers' schedulers for DiT know discrete VP with {', '.join(predictions)}; this pipeline was "
            f"trained on {process} with {name}"
        )
    betas = {"linear": (1e-4 * 1000 / process.num_steps, 0.02 * 1000 / process.num_steps)}
    start, end = betas.get(process.schedule, (0.00085, 0.012))
    return {
        "num_train_timesteps": process.num_steps,
        "beta_schedule": schedules[process.schedule],
        "beta_start": process.beta_start or start,
        "beta_end": process.beta_end or end,
        "prediction_type": predictions[name],
        "rescale_betas_zero_snr": process.zero_terminal_snr,
        "clip_sample": False,
    }
