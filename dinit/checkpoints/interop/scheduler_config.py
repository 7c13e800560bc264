"""Config of a diffusers scheduler, checked: every key's type and range, and keys that the class does not have.

diffusers takes what it is given: a text for a number ends in a traceback of torch, a misspelled key means the
default, and a key of another class has no effect.
"""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Annotated, Any, Literal

from pydantic import AllowInfNan, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from dinit.registry import suggest

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

TREE = "DPMSolverSDEScheduler"  # needs torchsde, which dinit does not install
_STANDS_FOR_TREE = "KDPM2AncestralDiscreteScheduler"  # of the same schedule, with the same defaults
# What a constructor or a first run raises for a config that it cannot use.
FAILURES = (
    ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, MemoryError, NameError,
    NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("Input should be a number")
    return value


Whole = Annotated[int, BeforeValidator(_no_truth)]
Number = Annotated[float, AllowInfNan(False), BeforeValidator(_no_truth)]
Positive = Annotated[Number, Field(gt=0)]
Share = Annotated[Number, Field(gt=0, lt=1)]
Switch = bool | None  # null is false, as in diffusers
Betas = Annotated[list[Annotated[Number, Field(ge=0, le=1)]], Field(min_length=1)]
Variance = Literal["fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"]

# The values that a key may have in any class, and null where that is the default; its constructor refuses what the
# class does not have of them.
KEYS: Mapping[str, Any] = {
    "algorithm_type": Literal[
        "deis",
        "dpmsolver",
        "dpmsolver++",
        "sde-dpmsolver",
        "sde-dpmsolver++",
        "data_prediction",
        "noise_prediction",
    ],
    "base_image_seq_len": Annotated[Whole, Field(ge=1)],
    "base_shift": Number,
    "beta_end": Share,
    "beta_schedule": Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "exp"],
    "beta_start": Share,
    "clip_sample": Switch,
    "clip_sample_range": Positive,
    "corrector_order": Annotated[Whole, Field(ge=0, le=4)],
    "disable_corrector": list[Annotated[Whole, Field(ge=0)]],
    "dynamic_thresholding_ratio": Annotated[Number, Field(gt=0, le=1)],
    "euler_at_final": Switch,
    "final_sigmas_type": Literal["zero", "sigma_min"],
    "flow_shift": Positive,
    "interpolation_type": Literal["linear", "log_linear"],
    "invert_sigmas": Switch,
    "lambda_min_clipped": Annotated[float, BeforeValidator(_no_truth)],
    "lower_order_final": Switch,
    "max_image_seq_len": Annotated[Whole, Field(ge=1)],
    "max_shift": Number,
    "num_train_timesteps": Annotated[Whole, Field(ge=2)],
    "predict_x0": Switch,
    "prediction_type": str,
    "predictor_order": Annotated[Whole, Field(ge=1, le=4)],
    "rescale_betas_zero_snr": Switch,
    "rho": Positive,
    "sample_max_value": Annotated[Number, Field(ge=1)],
    "set_alpha_to_one": Switch,
    "shift": Positive,
    "shift_terminal": Share,
    "sigma_data": Positive,
    "sigma_max": Positive,
    "sigma_min": Positive,
    "sigma_schedule": Literal["karras", "exponential"],
    "skip_prk_steps": Switch,
    "solver_order": Annotated[Whole, Field(ge=1, le=3)],
    "solver_p": None,
    "solver_type": Literal["bh1", "bh2", "heun", "logrho", "midpoint"],
    "steps_offset": Annotated[Whole, Field(ge=0)],
    "stochastic_sampling": Switch,
    "tau_func": Callable[..., Any] | None,
    "thresholding": Switch,
    "time_shift_type": Literal["exponential", "linear"],
    "timestep_spacing": Literal["linspace", "leading", "trailing"],
    "timestep_type": Literal["discrete", "continuous"],
    "trained_betas": Betas,
    "use_beta_sigmas": Switch,
    "use_dynamic_shifting": Switch,
    "use_exponential_sigmas": Switch,
    "use_flow_sigmas": Switch,
    "use_karras_sigmas": Switch,
    "use_lu_lambdas": Switch,
    "variance_type": Variance,
}
# Of another class, these would mean another schedule or another output of the network.
_TRAINING = (
    "beta_end", "beta_schedule", "beta_start", "invert_sigmas", "num_train_timesteps", "prediction_type",
    "rescale_betas_zero_snr", "shift", "sigma_data", "timestep_type", "trained_betas", "use_dynamic_shifting",
    "use_flow_sigmas",
)  # fmt: skip
# Without a meaning since diffusers 0.3, and a seed that no image's noise comes from here.
_WITHOUT_EFFECT = ("tensor_format", "timestep_values", "noise_sampler_seed")


def scheduler_of(config: Mapping[str, Any], where: str, name: str | None = None) -> Any:
    """The scheduler of a scheduler_config.json.

    Args:
        config: The file's content.
        where: The file, for errors.
        name: The class; None for the config's own.

    Returns:
        A scheduler of diffusers.

    Raises:
        ValueError: A class that is not known; a key that it does not have, or a value that it cannot have.
    """
    own = config.get("_class_name")
    if own is not None and not (isinstance(own, str) and own.endswith("Scheduler")):
        raise ValueError(f"{where}: _class_name = {own!r} is no scheduler of diffusers")
    if name is None and own is None:
        raise ValueError(f"{where} has no _class_name: add the name of the scheduler's class")
    name = str(name or own)
    if name not in SCHEDULERS:
        raise ValueError(
            f"{where}: a {name} does not show what the network was trained on{suggest(name, list(SCHEDULERS))}; "
            "give process= and parameterization= yourself if you know it"
        )
    return build(name, checked(name, config, where), where)


def checked(name: str, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of a config that the class has, each of its own type: 1000.0 and "1000" become 1000.

    Args:
        name: A name in SCHEDULERS.
        config: From a file or from a scheduler.
        where: Where it is from, for errors.

    Returns:
        The settings. A key of another class without effect is left out, with a warning where it is switched on.

    Raises:
        ValueError: A key that no class has; one of another class that changes what the network means; a value of a
            wrong type or out of range.
    """
    accepted = arguments(name)
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    given = _prediction_of_old_files(given, where)
    made: dict[str, Any] = {}
    foreign: list[str] = []
    for key, value in given.items():
        if key in accepted:
            made[key] = _value(name, key, value, where)
        elif not _is_neutral(key, value):
            _refuse(name, key, value, where)
            foreign.append(f"{key} = {value!r}")
    if foreign:
        warnings.warn(
            f"{where}: {name} has no {', '.join(foreign)}: without effect here, as in diffusers",
            UserWarning,
            stacklevel=2,
        )
    betas, steps = made.get("trained_betas"), made.get("num_train_timesteps", 1000)
    if betas is not None and len(betas) != steps:
        raise ValueError(f"{where}: trained_betas has {len(betas)} entries, num_train_timesteps is {steps}")
    full = {**accepted, **made}
    linear = full.get("beta_schedule") in ("linear", "scaled_linear")
    if betas is None and linear and full["beta_start"] > full["beta_end"]:
        raise ValueError(f"{where}: beta_start = {full['beta_start']} is above beta_end = {full['beta_end']}")
    return made


def build(name: str, config: Mapping[str, Any], where: str = "") -> Any:
    """A new scheduler of diffusers' class `name`. ValueError where its constructor refuses the config."""
    try:
        return _copy_of(name, config)
    except FAILURES as error:
        raise refused(name, config, where, error, lambda rest: _copy_of(name, rest)) from error


def refused(
    name: str, config: Mapping[str, Any], where: str, error: Exception, attempt: Callable[[dict[str, Any]], object]
) -> ValueError:
    """The error of a config that does not work: with the keys without which it would.

    Args:
        name: The scheduler's class.
        config: What does not work.
        where: Where it is from; "" for an object.
        error: What was raised.
        attempt: Raises for a config that does not work.

    Returns:
        A ValueError of a few lines.
    """
    guilty: list[str] = []
    for key, value in config.items():
        if value == arguments(name).get(key, value):  # without it, it would be the same
            continue
        try:
            attempt({other: given for other, given in config.items() if other != key})
        except FAILURES:
            continue
        guilty.append(f"{key} = {value!r}")
    reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
    named = f" with {' or '.join(guilty[:3])}" if guilty else ""
    return ValueError(f"{where}{': ' if where else ''}{name}{named} does not work in diffusers: {reason}")


def settings_of(scheduler: Any) -> dict[str, Any]:
    """The config of a scheduler without the keys that its class does not have."""
    return {key: scheduler.config[key] for key in arguments(type(scheduler).__name__) if key in scheduler.config}


def clipping_of(name: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the steps of a scheduler clip, as the mapping of a guidance; None for nothing.

    Args:
        name: The scheduler's class.
        config: Its settings.
    """
    full = {**arguments(name), **config}
    if full.get("thresholding"):
        ratio, largest = full["dynamic_thresholding_ratio"], full["sample_max_value"]
        return {"name": "dynamic-threshold", "percentile": ratio, "largest": largest}
    return {"name": "clip-x0", "limit": full["clip_sample_range"]} if full.get("clip_sample") else None


@cache
def arguments(name: str) -> dict[str, Any]:
    """The keys of a class's config, each with its default."""
    parameters = inspect.signature(_class(name).__init__).parameters
    return {key: one.default for key, one in parameters.items() if key != "self"}


def _class(name: str) -> Any:
    import diffusers

    found: Any = getattr(diffusers, name)
    missing = name == TREE and "num_train_timesteps" not in inspect.signature(found.__init__).parameters
    return getattr(diffusers, _STANDS_FOR_TREE) if missing else found


def _copy_of(name: str, config: Mapping[str, Any]) -> Any:
    """A new scheduler, copied from one that is kept: some constructors take half a second."""
    try:
        return copy.deepcopy(_kept(name, json.dumps(config)))
    except TypeError:  # a value that JSON does not have: a function, or one that the constructor refuses
        return _class(name)(**config)


@lru_cache(maxsize=32)
def _kept(name: str, config: str) -> Any:
    return _class(name)(**json.loads(config))  # from_config would take a key that it does not know


def _value(name: str, key: str, value: Any, where: str) -> Any:
    value = value.tolist() if hasattr(value, "tolist") else value
    kind = KEYS.get(key)
    if key not in KEYS or (value is None and arguments(name)[key] is None):
        return value
    try:
        found = _adapter(key).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
        raise ValueError(f"{where}: {key}{place} = {shortened(value)} is not usable: {first['msg']}") from error
    return False if found is None and kind == Switch else found


@cache
def _adapter(key: str) -> TypeAdapter[Any]:
    return TypeAdapter(KEYS[key], config=ConfigDict(arbitrary_types_allowed=True))


def shortened(value: Any) -> str:
    """The value as text, cut off where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _prediction_of_old_files(given: dict[str, Any], where: str) -> dict[str, Any]:
    """predict_epsilon, which prediction_type has replaced."""
    if "predict_epsilon" not in given:
        return given
    old = given.pop("predict_epsilon")
    if not isinstance(old, bool):
        raise ValueError(f"{where}: predict_epsilon = {old!r} is not usable: true or false")
    meant = "epsilon" if old else "sample"
    if given.setdefault("prediction_type", meant) != meant:
        raise ValueError(
            f"{where}: predict_epsilon = {str(old).lower()} means {meant!r}, and prediction_type is "
            f"{given['prediction_type']!r}; keep the one that the network was trained with"
        )
    return given


def _is_neutral(key: str, value: Any) -> bool:
    """Whether a key that the class does not have would change nothing in one that has it."""
    if key in _WITHOUT_EFFECT:
        return True
    if key not in _foreign():  # a misspelled one, of which false and null mean something too
        return False
    if value is None or value is False:
        return True
    return key != "clip_sample" and any(value == default for default in _foreign()[key])


def _refuse(name: str, key: str, value: Any, where: str) -> None:
    """ValueError for a key that would change what the network means, or that is no key."""
    if key not in _foreign():
        raise ValueError(
            f"{where}: {key} = {shortened(value)} is no setting of {name}{suggest(key, list(arguments(name)))}; "
            "take it out if it means nothing"
        )
    if key in _TRAINING:
        raise ValueError(
            f"{where}: {name} has no {key}, here {shortened(value)}, which means another training; take it out "
            "if the network was trained without it, or name a scheduler class that has it"
        )


@cache
def _foreign() -> dict[str, list[Any]]:
    """The keys of all schedulers of diffusers, each with its defaults: of the known ones, where these have it."""
    import diffusers

    found: dict[str, list[Any]] = {}
    for name in SCHEDULERS:
        for key, default in arguments(name).items():
            found.setdefault(key, []).append(default)
    for name in set(dir(diffusers)) - set(SCHEDULERS):
        if name.endswith("Scheduler"):
            for key, one in inspect.signature(getattr(diffusers, name).__init__).parameters.items():
                if one.kind is one.POSITIONAL_OR_KEYWORD and key != "self":
                    found.setdefault(key, [one.default])
    return found
