"""The method of a restoration: a posterior guidance, or a posterior sampler that owns its loop."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor

from dinit.arguments import shown
from dinit.inverse.guidance.base import PosteriorGuidance
from dinit.inverse.measurement import Measurement
from dinit.inverse.samplers.base import POSTERIOR_SAMPLERS, PosteriorSampler
from dinit.pipelines.plain import from_spec
from dinit.registry import UnknownName, suggest
from dinit.samplers import Sampler
from dinit.samplers.guidance import GUIDANCES, Guidance
from dinit.samplers.guidance.autoguidance import Autoguidance

if TYPE_CHECKING:
    from dinit.pipelines.call import Call

Method = PosteriorGuidance | PosteriorSampler
MethodLike = Method | str | Mapping[str, Any]

DEFAULT_METHOD = "mmps"
DEFAULT_NONLINEAR = "dps"
FAR = 2.0  # of decoded images, where data are in [-1, 1]

Part = TypeVar("Part", bound=Sampler | Guidance)


def make_method(spec: MethodLike) -> Method:
    """The method that a spec stands for.

    Args:
        spec: A posterior guidance or posterior sampler, its name with or without options ("mmps:iterations=3"), or
            a mapping.

    Raises:
        ValueError: Anything else; an unknown name; an option out of range.
    """
    if isinstance(spec, PosteriorGuidance | PosteriorSampler):
        return spec
    if not isinstance(spec, str | Mapping):
        raise ValueError(f"method must be a name, a mapping or an object of a method, got {shown(spec)}")
    name = str(spec.get("name", "")) if isinstance(spec, Mapping) else spec.partition(":")[0]
    own = name.strip() in POSTERIOR_SAMPLERS
    try:
        made: Any = (POSTERIOR_SAMPLERS if own else GUIDANCES).create(from_spec(spec))
    except UnknownName as error:
        raise ValueError(f"unknown method {name!r}{suggest(name, method_names())}") from error
    if not isinstance(made, PosteriorGuidance | PosteriorSampler):
        known = ", ".join(method_names())
        raise ValueError(f"{name!r} does not take a measurement: give it as guidance=; methods are {known}")
    return made


def method_names() -> list[str]:
    """Names of all methods."""
    guidances = (name for name in GUIDANCES if issubclass(GUIDANCES[name], PosteriorGuidance))
    return sorted({*guidances, *POSTERIOR_SAMPLERS})


def nonlinear_methods() -> list[str]:
    """Names of the methods that take any differentiable operator."""
    registries = {name: POSTERIOR_SAMPLERS if name in POSTERIOR_SAMPLERS else GUIDANCES for name in method_names()}
    return [name for name, one in registries.items() if not one[name].linear_only]  # pyright: ignore


def with_solver(method: PosteriorSampler, solver: Sampler) -> PosteriorSampler:
    """The posterior sampler with another solver inside.

    Args:
        method: The posterior sampler.
        solver: Of its unconditional steps.

    Raises:
        ValueError: It has no solver inside.
    """
    if "solver" not in {field.name for field in dataclasses.fields(method)}:
        name = getattr(method, "registry_name", type(method).__name__)
        raise ValueError(f"method {name!r} is a sampler and has no other inside: leave sampler= out")
    return dataclasses.replace(method, solver=solver)  # pyright: ignore[reportCallIssue]


def method_of(sampler: Sampler, guidance: tuple[Any, ...]) -> Method | None:
    """The method among the parts of a call; None where there is none."""
    parts = [one for one in (sampler, *guidance) if isinstance(one, PosteriorGuidance | PosteriorSampler)]
    return parts[-1] if parts else None


def around(method: PosteriorGuidance, guidance: tuple[Guidance, ...]) -> tuple[Guidance, ...]:
    """The guidances with the method in the place from which both predictions that CFG extrapolates know y.

    That is the innermost: x0 is then extrapolated from p(x0 | y) towards p(x0 | y, c), and both meet y, so their
    difference leaves a linear measurement alone. Outside CFG the method would be given the Jacobian of the guided
    prediction, larger by the scale, where the covariance of x0 is meant. Autoguidance extrapolates from another
    model, which has no part of y: the method goes around it.

    Args:
        method: The method.
        guidance: The others, the last outermost.
    """
    inner = max((place for place, one in enumerate(guidance, 1) if isinstance(one, Autoguidance)), default=0)
    return (*guidance[:inner], method, *guidance[inner:])


def with_measurement(part: Part, measurement: Measurement | None) -> Part:
    """A sampler or guidance that is a method without a measurement, with this one; any other as it is."""
    if isinstance(part, PosteriorGuidance | PosteriorSampler) and part.measurement is None:
        return dataclasses.replace(part, measurement=measurement)
    return part


def warn_of_range(images: Tensor, call: Call) -> None:
    """A warning where restored images leave the range of data by a factor: the run diverged, with no error.

    Args:
        images: (B, C, H, W), decoded, around [-1, 1].
        call: What made them.
    """
    method = method_of(call.sampler, call.guidance)
    if method is None:
        return
    largest = images.detach().abs().flatten(1).amax(1)
    far = int((~(largest <= FAR)).sum())  # not a number is far as well
    if far:
        name = getattr(method, "registry_name", type(method).__name__)
        warnings.warn(
            f"method {name!r} diverged in {far} of {len(images)} images: values up to {float(largest.max()):.3g}, "
            "where data are in [-1, 1]. Take more steps, a smaller step size of the method, a larger noise_std, or "
            "another method",
            UserWarning,
            stacklevel=2,
        )
