"""Training settings in a diffusers scheduler's config: the process and the parameterization.

A scheduler's config mixes the two with how to sample. Spacing, solver, order, clipping and final sigma are choices
of sampling, and are not read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dinit.checkpoints.interop.scheduler_config import (
    CHAIN_SCHEDULERS,
    FLOW_SCHEDULERS,
    SCHEDULERS,
    arguments,
    checked,
)
from dinit.diffusion import Parameterization, Process
from dinit.diffusion.continuous import EDM, LinearFlow
from dinit.diffusion.discrete import VPBetas, VPDiscrete
from dinit.diffusion.parameterization import X0, Difference, EDMPreconditioning, Epsilon, V

_ADVICE = "give process= and parameterization= yourself if you know what it was trained on"
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled-linear", "squaredcos_cap_v2": "squared-cosine"}
_PREDICTIONS = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": V()}


def read_scheduler(scheduler: Any) -> tuple[Process, Parameterization]:
    """The process and the parameterization of the networks that this diffusers scheduler samples.

    ValueError where they cannot be inferred from it: an unknown class, or a setting of unknown meaning.
    """
    name, configured = family(scheduler), scheduler.config
    own = {key: configured[key] for key in arguments(name) if key in configured}
    settings = Settings(scheduler, {**configured, **checked(name, own, type(scheduler).__name__)})
    if name in CHAIN_SCHEDULERS:
        if settings.get("use_flow_sigmas", False):
            return _flow(settings, shift=settings.get("flow_shift", 1.0))
        return _chain(settings)
    if name in FLOW_SCHEDULERS:
        return _flow(settings, shift=settings.get("shift", 1.0))
    return _edm(settings)


@dataclass(frozen=True)
class Settings:
    """A scheduler, and its config with values of the right types.

    Attributes:
        scheduler: Of diffusers.
        config: Its config. Keys that its class does not have stay: they may tell what the network was trained on.
    """

    scheduler: Any
    config: Mapping[str, Any]

    def get(self, name: str, default: Any = None) -> Any:
        """A setting."""
        return self.config.get(name, default)


def family(scheduler: Any) -> str:
    """The name of the known class that the scheduler is, or is derived from. ValueError where it is none."""
    for one in type(scheduler).__mro__:
        if one.__name__ in SCHEDULERS:
            return one.__name__
    raise ValueError(
        f"a {type(scheduler).__name__} does not show what the network was trained on (known: "
        f"{', '.join(SCHEDULERS)}); {_ADVICE}"
    )


def _chain(settings: Settings) -> tuple[Process, Parameterization]:
    if settings.get("timestep_type", "discrete") != "discrete":
        raise _refused(settings, "timestep_type", "discrete")
    prediction = settings.get("prediction_type", "epsilon")
    if prediction not in _PREDICTIONS:
        raise _refused(settings, "prediction_type", *_PREDICTIONS)
    return _betas(settings), _PREDICTIONS[prediction]


def _betas(settings: Settings) -> Process:
    schedule, zero = settings.get("beta_schedule"), bool(settings.get("rescale_betas_zero_snr", False))
    trained = settings.get("trained_betas")
    if trained is not None:
        return VPBetas(tuple(float(beta) for beta in trained), zero_terminal_snr=zero)
    if schedule not in _SCHEDULES:  # sigmoid, laplace, exp: the scheduler's own table, rescaled already
        return VPBetas(tuple(settings.scheduler.betas.double().tolist()), zero_terminal_snr=zero)
    ends: dict[str, Any] = {}
    if schedule != "squaredcos_cap_v2":
        ends = {"beta_start": settings.get("beta_start"), "beta_end": settings.get("beta_end")}
    steps = settings.get("num_train_timesteps")
    return VPDiscrete(_SCHEDULES[schedule], num_steps=steps, zero_terminal_snr=zero, **ends)  # type: ignore[arg-type]


def _flow(settings: Settings, shift: float) -> tuple[Process, Parameterization]:
    if settings.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise _refused(settings, "prediction_type", "flow_prediction")
    if settings.get("num_train_timesteps", 1000) != 1000:  # the time input is 1000 sigma
        raise _refused(settings, "num_train_timesteps", 1000)
    if settings.get("use_dynamic_shifting", False):  # by the image's size, which only the pipeline has
        raise _refused(settings, "use_dynamic_shifting", False)
    if settings.get("invert_sigmas", False):
        raise _refused(settings, "invert_sigmas", False)
    return LinearFlow(float(shift)), Difference()


def _edm(settings: Settings) -> tuple[Process, Parameterization]:
    if settings.get("prediction_type", "epsilon") != "epsilon":  # v_prediction has the sign of F turned
        raise _refused(settings, "prediction_type", "epsilon")
    process = EDM(settings.get("sigma_min"), settings.get("sigma_max"))
    return process, EDMPreconditioning(settings.get("sigma_data"))


def _refused(settings: Settings, setting: str, *accepted: Any) -> ValueError:
    return ValueError(
        f"{type(settings.scheduler).__name__} with {setting} = {settings.get(setting)!r} is not covered (accepted: "
        f"{', '.join(repr(one) for one in accepted)}); {_ADVICE}"
    )
