"""Recipe checks beyond types: names and options of registries, and settings that exclude each other."""

from __future__ import annotations

import inspect
import json
import re
import typing
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError

from dinit.data import DATASETS, ImageData
from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, BackboneDenoiser
from dinit.diffusion.parameterization import check_pair
from dinit.models.base import BACKBONES, Backbone
from dinit.registry import Registry, UnknownName, suggest
from dinit.samplers.base import SAMPLERS
from dinit.samplers.grids.base import GRIDS
from dinit.samplers.guidance.base import GUIDANCES, apply_guidance
from dinit.samplers.points import sampling_points
from dinit.training.build import SWITCHES, make_backbone, make_data, make_network
from dinit.training.finetune.transfer import adapt
from dinit.training.losses.terms import LOSS_TERMS
from dinit.training.losses.times import TIME_SAMPLERS
from dinit.training.losses.weighting import WEIGHTINGS
from dinit.training.recipe.model import Named, Recipe
from dinit.training.recipe.yaml import Mistake, Path

# What a part that is made of wrong numbers raises; of torch, for sizes that are too large, a RuntimeError.
_MISTAKES = (
    ValueError,
    TypeError,
    OSError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    AttributeError,
)
# Numbers of a backbone's options from which on even its shapes take minutes to compute.
_LARGEST, _DEEPEST = 1_000_000, 10_000


class _Checks:
    """Collects mistakes; a part that cannot be built is None, and checks that need it are skipped."""

    def __init__(self) -> None:
        self.mistakes: list[Mistake] = []

    def attempt(self, path: Path, build: Callable[[], Any], named: Named | None = None) -> Any:
        """What `build` returns, or None with its error noted as a mistake.

        It is noted at `path`, or at the option of `named` that the message names.
        """
        try:
            return build()
        except _MISTAKES as error:
            options = named.options if named else {}
            mentioned = [word for word in re.findall(r"\w+", str(error)) if word in options]
            reason = str(error).split("\n")[0] or type(error).__name__
            self.mistakes.append(Mistake((*path, *mentioned[:1]), reason))
            return None

    def entry(self, path: Path, registry: Registry[Any], named: Named, extra: tuple[str, ...] = ()) -> bool:
        """Whether name and options are right, by the signature of the registry's entry. extra: more options."""
        try:
            entry: Any = registry[named.name]
        except UnknownName as error:
            self.mistakes.append(Mistake((*path, "name"), str(error)))
            return False
        parameters = inspect.signature(entry).parameters
        hints = typing.get_type_hints(entry.__init__ if inspect.isclass(entry) else entry)
        before = len(self.mistakes)
        try:
            options = registry.current_options(named.name, named.options)
        except ValueError as error:
            self.mistakes.append(Mistake(path, str(error)))
            return False
        for option, value in options.items():
            if option in parameters:
                self._type((*path, option), hints.get(option, Any), value)
            elif option not in extra:
                known = [*parameters, *extra]
                tail = suggest(option, known) if known else "; it takes none"
                message = f"{registry.kind} {named.name!r} has no option {option!r}{tail}"
                self.mistakes.append(Mistake((*path, option), message))
        for option, parameter in parameters.items():
            if parameter.default is parameter.empty and option not in options:
                message = f"{registry.kind} {named.name!r} needs the option {option!r}"
                self.mistakes.append(Mistake(path, message))
        return len(self.mistakes) == before

    def part(self, path: Path, registry: Registry[Any], named: Named) -> Any:
        """The object, or None."""
        if not self.entry(path, registry, named):
            return None
        return self.attempt(path, lambda: registry.create(named.spec()), named)

    def _type(self, path: Path, hint: Any, value: Any) -> None:
        try:
            adapter = TypeAdapter(hint)
        except (PydanticSchemaGenerationError, PydanticUserError):
            return  # a type that Pydantic cannot check; the constructor will
        try:
            adapter.validate_json(json.dumps(value, default=str), strict=True)
        except TypeError:
            return  # an abstract class, as a rule of `unified` is; the constructor checks its mapping
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            self.mistakes.append(Mistake(path, f"{message[0].lower()}{message[1:]}, got {value!r}"))


def check_recipe(recipe: Recipe) -> list[Mistake]:
    """All mistakes of a recipe whose keys and types are right. Reads the data set, trains nothing."""
    checks = _Checks()
    process = checks.part(("process",), PROCESSES, recipe.process)
    parameterization = checks.part(("parameterization",), PARAMETERIZATIONS, recipe.parameterization)
    weighting = checks.part(("loss", "weighting"), WEIGHTINGS, recipe.loss.weighting)
    for i, term in enumerate(recipe.loss.terms):
        checks.part(("loss", "terms", i), LOSS_TERMS, term)
    checks.part(("time",), TIME_SAMPLERS, recipe.time)
    backbone = _check_backbone(checks, recipe)
    denoiser = None
    if process is not None and parameterization is not None:
        before = len(checks.mistakes)
        checks.attempt(("parameterization",), lambda: check_pair(process, parameterization, recipe.t_max))
        paired = len(checks.mistakes) == before
        if paired and weighting is not None:
            checks.attempt(
                ("loss", "weighting"),
                lambda: _check_weights(process, parameterization, weighting, recipe.t_max),
            )
        if paired and backbone is not None:
            denoiser = BackboneDenoiser(backbone, process, parameterization, recipe.t_max)
    _check_sampling(checks, recipe, denoiser)
    _check_loop(checks, recipe)
    _check_averages(checks, recipe)
    _check_tracker(checks, recipe)
    _check_evaluation(checks, recipe)
    return checks.mistakes


def _check_backbone(checks: _Checks, recipe: Recipe) -> Backbone | None:
    """The backbone, without memory for its weights; None where it or the data set is wrong."""
    data: ImageData | None = None
    if checks.entry(("data",), DATASETS, recipe.data):
        data = checks.attempt(("data",), lambda: make_data(recipe, quick=True), recipe.data)
    if data is not None and data.picture_channels not in (1, 3) and recipe.training.sample_every:
        message = f"sample grids need 1 or 3 channels, the data has {data.picture_channels}; set it to 0"
        checks.mistakes.append(Mistake(("training", "sample_every"), message))
    right = checks.entry(("backbone",), BACKBONES, recipe.backbone, extra=("preset",))
    for option, value in recipe.backbone.options.items():
        deep = any(word in option for word in ("depth", "layers", "blocks"))
        if (size := _largest(value)) > (_DEEPEST if deep else _LARGEST):
            checks.mistakes.append(Mistake(("backbone", option), f"{size} is beyond any backbone"))
            right = False
    if not right or data is None:
        return None

    def build() -> Backbone:
        with torch.device("meta"):
            return make_backbone(recipe, data)

    backbone: Backbone | None = checks.attempt(("backbone",), build, recipe.backbone)
    if backbone is not None:
        for switch in SWITCHES:
            checks.attempt((switch,), partial(make_network, recipe, backbone, (switch,)))
        if recipe.finetune is not None:
            checks.attempt(("finetune", "targets"), partial(adapt, backbone, recipe.finetune))
    return backbone


def _largest(value: Any) -> float:
    """The largest size of the numbers in a value; 0 where there are none."""
    if isinstance(value, list | tuple):
        return max(map(_largest, value), default=0)
    return abs(value) if isinstance(value, int | float) else 0


def _check_weights(process: Any, parameterization: Any, weighting: Any, t_max: float) -> None:
    t = torch.tensor([process.t_min, t_max], dtype=torch.float64)
    k = process.scales(t)
    weights = weighting.on_output(k, parameterization.posterior_mean_coefficients(k)[1])
    if not bool(weights.isfinite().all()):
        raise ValueError(
            f"this weight is {weights.tolist()} at t = {t.tolist()} of {process}, where a number is needed; "
            "choose another weighting, or stop short of pure noise with t_max = 0.999"
        )


def _check_sampling(checks: _Checks, recipe: Recipe, denoiser: BackboneDenoiser | None) -> None:
    section = recipe.sampling
    sampler = checks.part(("sampling", "sampler"), SAMPLERS, section.sampler)
    grid = None if section.grid is None else checks.part(("sampling", "grid"), GRIDS, section.grid)
    if denoiser is not None and sampler is not None and (section.grid is None or grid is not None):
        placed = grid or sampler.own_grid or sampler.grid_for(denoiser.process)
        end = section.end or sampler.end_for(denoiser.process)
        checks.attempt(
            ("sampling",), lambda: sampler.check(denoiser, sampling_points(denoiser, section.steps, placed, end))
        )
    for i, named in enumerate(section.guidance):
        path: Path = ("sampling", "guidance", i)
        guidance = checks.part(path, GUIDANCES, named)
        if guidance is not None and denoiser is not None:
            checks.attempt(path, lambda guidance=guidance: apply_guidance(denoiser, guidance))


def _check_loop(checks: _Checks, recipe: Recipe) -> None:
    loop = recipe.training
    if loop.batch_size % loop.gradient_accumulation:
        message = f"must divide batch_size = {loop.batch_size}, got {loop.gradient_accumulation}"
        checks.mistakes.append(Mistake(("training", "gradient_accumulation"), message))
    changes = [done for done, _ in loop.extended]
    if changes != sorted(set(changes)) or any(done > loop.steps for done in changes):
        message = f"the steps done must rise to at most training.steps = {loop.steps}, got {changes}; leave it out"
        checks.mistakes.append(Mistake(("training", "extended"), message))
    if recipe.schedule.warmup_steps >= loop.steps and not loop.extended:
        message = f"must be below training.steps = {loop.steps}, got {recipe.schedule.warmup_steps}"
        checks.mistakes.append(Mistake(("schedule", "warmup_steps"), message))


def _check_averages(checks: _Checks, recipe: Recipe) -> None:
    if recipe.ema.widths and recipe.finetune is not None and recipe.finetune.mode != "full":
        message = f"snapshots are of whole networks, not of finetune.mode {recipe.finetune.mode}; leave them out"
        checks.mistakes.append(Mistake(("ema", "widths"), message))


def _check_tracker(checks: _Checks, recipe: Recipe) -> None:
    known = sorted(kind.value for kind in LoggerType if kind is not LoggerType.ALL)
    if recipe.tracker is not None and recipe.tracker not in known:
        tail = suggest(recipe.tracker, known)
        checks.mistakes.append(Mistake(("tracker",), f"unknown tracker {recipe.tracker!r}{tail}; null is none"))
    elif recipe.tracker is not None and recipe.tracker not in map(str, get_available_trackers()):
        message = f"{recipe.tracker} is not installed here; install it, or set tracker: null"
        checks.mistakes.append(Mistake(("tracker",), message))


def _check_evaluation(checks: _Checks, recipe: Recipe) -> None:
    section = recipe.evaluation
    if not section.every:
        return
    from dinit.evaluation.metrics.base import check_metrics  # torch-fidelity is slow to import
    from dinit.evaluation.protocols import named_protocol

    if section.metrics is not None:
        checks.attempt(("evaluation", "metrics"), lambda: check_metrics(section.metrics or ()))
    if section.protocol is not None:
        checks.attempt(("evaluation", "protocol"), lambda: named_protocol(str(section.protocol)))
    if section.data is not None:
        checks.entry(("evaluation", "data"), DATASETS, section.data)
