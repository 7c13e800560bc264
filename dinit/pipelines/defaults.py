"""Defaults of a pipeline's calls: sampler, steps, grid, end, guidance, and a diffusers scheduler as sampler."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dinit.arguments import shown
from dinit.checkpoints.interop.scheduler_run import build
from dinit.checkpoints.interop.scheduler_sampler import SchedulerSampler
from dinit.checkpoints.interop.training_scheduler import training_scheduler
from dinit.pipelines.call import (
    DEFAULT_KEYS,
    GridLike,
    GuidanceLike,
    SamplerLike,
    make_grid,
    make_guidance,
    make_sampler,
    to_spec,
    without_idle_options,
)
from dinit.pipelines.labels import whole_number
from dinit.registry import suggest
from dinit.samplers import Sampler, TimeGrid
from dinit.samplers.guidance import Guidance
from dinit.samplers.points import End, check_end
from dinit.specs import parse_spec

if TYPE_CHECKING:
    from dinit.pipelines.generate import Pipeline

_REHEARSED_STEPS = 20


class CallDefaults:
    """What a `Pipeline` uses for what a call does not name: settable attributes, checked when they are assigned."""

    _defaults: dict[str, Any]

    @property
    def defaults(self) -> dict[str, Any]:
        """What a call uses for what it does not name: sampler, steps, grid, end, guidance, as they were given."""
        return dict(self._defaults)

    @property
    def sampler(self) -> Sampler | None:
        """The default sampler. Assign one as `__call__` takes it, or None for no default."""
        return None if "sampler" not in self._defaults else make_sampler(self._defaults["sampler"])

    @sampler.setter
    def sampler(self, value: SamplerLike | None) -> None:
        sampler = None if value is None else make_sampler(value)
        if sampler is not None:
            self._check_sampler(sampler)
        self._set_default("sampler", sampler)

    @property
    def steps(self) -> int | None:
        """The default number of sampling steps. Assign a number, or None for no default."""
        return self._defaults.get("steps")

    @steps.setter
    def steps(self, value: int | None) -> None:
        self._set_default("steps", None if value is None else whole_number("steps", value))

    @property
    def grid(self) -> TimeGrid | None:
        """The default time grid. Assign one as `__call__` takes it, or None for the usual one."""
        return None if "grid" not in self._defaults else make_grid(self._defaults["grid"])

    @grid.setter
    def grid(self, value: GridLike | None) -> None:
        self._set_default("grid", None if value is None else make_grid(value))

    @property
    def end(self) -> End | None:
        """The default end of a trajectory. Assign one as `__call__` takes it, or None for the sampler's."""
        return self._defaults.get("end")

    @end.setter
    def end(self, value: End | None) -> None:
        if value is not None:
            check_end(value)
        self._set_default("end", value)

    @property
    def guidance(self) -> tuple[Guidance, ...]:
        """The default guidance. Assign it as `__call__` takes it; None and [] are none."""
        return make_guidance(self._defaults.get("guidance"))

    @guidance.setter
    def guidance(self, value: GuidanceLike | Sequence[GuidanceLike] | None) -> None:
        self._set_default("guidance", make_guidance(value))

    @property
    def scheduler(self) -> Any:
        """A diffusers scheduler with the schedule and the prediction type that the backbone was trained on.

        `pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)` makes that scheduler the
        default sampler, as `pipe.sampler = ` does, and its samples are those of diffusers' own loop. Unlike there
        it is refused where it is on another schedule, or expects another prediction, than the backbone.

        Raises:
            ValueError: diffusers has no scheduler for what the backbone was trained on.
        """
        sampler = self.sampler
        if isinstance(sampler, SchedulerSampler):
            return build(sampler.scheduler, sampler.config)
        pipe = self._pipe
        return training_scheduler(pipe.process, pipe.parameterization, pipe.denoiser().learns_variance)

    @scheduler.setter
    def scheduler(self, value: Any) -> None:
        if isinstance(value, (str, Mapping, Sampler)):
            raise ValueError(f"scheduler must be a diffusers scheduler; see pipe.sampler; got {value!r}")
        self.sampler = value

    def _set_default(self, key: str, value: Any) -> None:
        others = {name: one for name, one in self._defaults.items() if name != key}
        self._defaults = others if value is None else {**others, key: to_spec(value)}
        self._pipe.register_to_config(defaults=to_spec(self._defaults))

    def _check_sampler(self, sampler: Sampler) -> None:
        """ValueError where it cannot sample this backbone; the network is not evaluated."""
        pipe = self._pipe
        steps = min(_REHEARSED_STEPS, pipe.process.num_steps)
        grid = sampler.own_grid or sampler.grid_for(pipe.process)
        label = 0 if pipe.num_classes else None
        pipe.check(pipe.prepare(label, sampler=sampler, steps=steps, grid=grid, guidance=None))

    @property
    def _pipe(self) -> Pipeline:
        """The pipeline that these are the defaults of, to the type checker."""
        return self  # pyright: ignore[reportReturnType]


def check_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults without empty ones. ValueError for unknown keys or values that cannot be made."""
    if not isinstance(defaults, Mapping):
        raise ValueError(f"defaults must be a mapping of {', '.join(DEFAULT_KEYS)}, got {shown(defaults)}")
    for key in defaults:
        if key not in DEFAULT_KEYS:
            raise ValueError(f"unknown pipeline default {key!r}{suggest(str(key), list(DEFAULT_KEYS))}")
    given = {key: _parsed(value) for key, value in defaults.items() if value is not None}
    if "sampler" in given:
        sampler, idle = without_idle_options(given["sampler"])
        if idle:
            warnings.warn(
                f"the pipeline's default sampler has options that do nothing and are left out: {', '.join(idle)}",
                UserWarning,
                stacklevel=2,
            )
            given["sampler"] = to_spec(sampler)
    make_guidance(given.get("guidance"))
    if "steps" in given:
        whole_number("steps", given["steps"])
    if "end" in given:
        check_end(given["end"])
    return given


def _parsed(value: Any) -> Any:
    """A default in the form that recipes read: "ddim:eta=0.5" as a mapping."""
    if isinstance(value, str):
        return parse_spec(value) if ":" in value else value
    return [_parsed(one) for one in value] if isinstance(value, (list, tuple)) else value
