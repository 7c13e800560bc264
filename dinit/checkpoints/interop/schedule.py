"""Training settings in a diffusers scheduler's config: the process and the parameterization.

A scheduler's config mixes the two with how to sample. Spacing, solver, order, clipping and final sigma are choices
of sampling, and are not read here.
"""

from __future__ import annotations

from typing import Any

from dinit.diffusion import Parameterization, Process
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.diffusion.discrete import VPBetas, VPDiscrete
from dinit.diffusion.parameterization import X0, Difference, EDMPreconditioning, Epsilon, V

# Schedulers that sample one and the same network, trained on a chain of betas.
CHAIN_SCHEDULERS = (
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDM_SCHEDULERS = ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler")
SCHEDULERS = (*CHAIN_SCHEDULERS, *FLOW_SCHEDULERS, *EDM_SCHEDULERS)

_ADVICE = "give process= and parameterization= yourself if you know what it was trained on"
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "squared-cosine"}
_PREDICTIONS = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": V()}


def read_scheduler(scheduler: Any) -> tuple[Process, Parameterization]:
    """The process and the parameterization of the networks that this diffusers scheduler samples.

    ValueError where they cannot be inferred from it: an unknown class, or a setting of unknown meaning.
    """
    name = family(scheduler)
    if name in CHAIN_SCHEDULERS:
        if _get(scheduler, "use_flow_sigmas", False):
            return _flow(scheduler, shift=_get(scheduler, "flow_shift", 1.0))
        return _chain(scheduler)
    if name in FLOW_SCHEDULERS:
        return _flow(scheduler, shift=_get(scheduler, "shift", 1.0))
    return _edm(scheduler)


def family(scheduler: Any) -> str:
    """The name of the known class that the scheduler is, or is derived from. ValueError where it is none."""
    for one in type(scheduler).__mro__:
        if one.__name__ in SCHEDULERS:
            return one.__name__
    raise ValueError(
        f"a {type(scheduler).__name__} does not show what the network was trained on (known: "
        f"{', '.join(SCHEDULERS)}); {_ADVICE}"
    )


def _chain(scheduler: Any) -> tuple[Process, Parameterization]:
    if _get(scheduler, "timestep_type", "discrete") != "discrete":
        raise _refused(scheduler, "timestep_type", "discrete")
    prediction = _get(scheduler, "prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise _refused(scheduler, "prediction_type", *_PREDICTIONS)
    return _betas(scheduler), _PREDICTIONS[prediction]


def _betas(scheduler: Any) -> Process:
    schedule, zero = _get(scheduler, "beta_schedule"), bool(_get(scheduler, "rescale_betas_zero_snr", False))
    trained = _get(scheduler, "trained_betas")
    if trained is not None:
        return VPBetas(tuple(float(beta) for beta in trained), zero_terminal_snr=zero)
    if schedule not in _SCHEDULES:  # sigmoid, laplace, exp: the scheduler's own table, rescaled already
        return VPBetas(tuple(scheduler.betas.double().tolist()), zero_terminal_snr=zero)
    ends: dict[str, Any] = {}
    if schedule != "squaredcos_cap_v2":
        ends = {"beta_start": _get(scheduler, "beta_start"), "beta_end": _get(scheduler, "beta_end")}
    steps = _get(scheduler, "num_train_timesteps")
    return VPDiscrete(_SCHEDULES[schedule], num_steps=steps, zero_terminal_snr=zero, **ends)  # type: ignore[arg-type]


def _flow(scheduler: Any, shift: float) -> tuple[Process, Parameterization]:
    if _get(scheduler, "prediction_type", "flow_prediction") != "flow_prediction":
        raise _refused(scheduler, "prediction_type", "flow_prediction")
    if _get(scheduler, "num_train_timesteps", 1000) != 1000:  # the time input is 1000 sigma
        raise _refused(scheduler, "num_train_timesteps", 1000)
    if _get(scheduler, "use_dynamic_shifting", False):  # by the image's size, which only the pipeline has
        raise _refused(scheduler, "use_dynamic_shifting", False)
    if _get(scheduler, "invert_sigmas", False):
        raise _refused(scheduler, "invert_sigmas", False)
    return LinearFlow(float(shift)), Difference()


def _edm(scheduler: Any) -> tuple[Process, Parameterization]:
    if _get(scheduler, "prediction_type", "epsilon") != "epsilon":  # v_prediction has the sign of F turned
        raise _refused(scheduler, "prediction_type", "epsilon")
    process = EDM(_get(scheduler, "sigma_min"), _get(scheduler, "sigma_max"))
    return process, EDMPreconditioning(_get(scheduler, "sigma_data"))


def _get(scheduler: Any, name: str, default: Any = None) -> Any:
    return scheduler.config.get(name, default)


def _refused(scheduler: Any, setting: str, *accepted: Any) -> ValueError:
    return ValueError(
        f"{type(scheduler).__name__} with {setting} = {_get(scheduler, setting)!r} is not covered (accepted: "
        f"{', '.join(repr(one) for one in accepted)}); {_ADVICE}"
    )
