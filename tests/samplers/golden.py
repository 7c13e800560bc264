"""Reading the golden files of published samplers, and running ours from the same start.

A file says what it is in its metadata: `reference` (the program), `function` and `kwargs` (the settings). A case is
found by these two names and reads everything else from the file. CONTRIBUTING.md describes the format.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from recorded import metadata_of, settings_of, tensors_of
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Process, Scales, WrappedDenoiser
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import RecordedNoise, Sampler
from dinit.samplers.guidance import Guidance, apply_guidance

Pairs = list[tuple[Tensor, Tensor]]
Case = Callable[["Golden"], Pairs]
Tolerance = float | Callable[["Golden"], float]
CASES: list[tuple[str, str, Case, Tolerance]] = []  # program, pattern of the function, case, tolerance


class NotCoveredError(Exception):
    """The file holds a run of something that dinit does not do as the program does: what, and why."""


def covers(program: str, *functions: str, tolerance: Tolerance = 1e-10) -> Callable[[Case], Case]:
    """Decorator: the function gives pairs (ours, golden) for runs of these functions of the program.

    Args:
        program: The last part of the file's `reference`, in lower case.
        functions: Patterns of the file's `function`. The longest that matches decides.
        tolerance: Largest deviation, relative to the largest value where that is above 1; or what gives it.
    """

    def enter(case: Case) -> Case:
        CASES.extend((program, function, case, tolerance) for function in functions)
        return case

    return enter


def case_of(golden: Golden) -> tuple[Case, float]:
    """The case that reads the file, and its tolerance.

    Raises:
        NotCoveredError: No case reads this function of this program.
    """
    for module in sorted(Path(__file__).parent.glob("cases_*.py")):  # the cases of one program each
        importlib.import_module(module.stem)
    program, function = golden.program, golden.said("function")
    found = [entry for entry in CASES if entry[0] == program and fnmatch(function, entry[1])]
    if not found:
        raise NotCoveredError(f"no case reads this function of {golden.said('reference')}")
    _, _, case, tolerance = max(found, key=lambda entry: len(entry[1]))
    return case, tolerance(golden) if callable(tolerance) else tolerance


def compare(golden: Golden) -> float:
    """The largest error of the file's run, which is within the tolerance.

    Raises:
        NotCoveredError: No case reads the run.
        ValueError: The file lacks something, or has a setting that dinit refuses.
        AssertionError: Ours is another run.
    """
    case, tolerance = case_of(golden)
    pairs = case(golden)
    assert pairs, f"nothing of {golden.description} is compared"
    errors = [error(ours, theirs) for ours, theirs in pairs]
    assert max(errors) <= tolerance, f"{golden.description}: errors {errors}"
    return max(errors)


@dataclass(frozen=True)
class Golden:
    """One file: tensors and metadata of a published run on the analytic mixture."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def metadata(self) -> dict[str, str]:
        return metadata_of(self.path)

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.path)

    def said(self, key: str) -> str:
        """An entry of the metadata."""
        return self.metadata[key]

    @property
    def program(self) -> str:
        """'diffusers' of 'huggingface/diffusers 0.42.1'."""
        return (self.said("reference").split("/")[-1].split() or [""])[0].lower()

    @cached_property
    def kwargs(self) -> dict[str, Any]:
        return settings_of(self.path, self.metadata)

    @property
    def description(self) -> str:
        """What the file holds: program, function and settings."""
        given = {key: value for key, value in self.kwargs.items() if key != "full_config"}
        return f"{self.said('reference')}: {self.said('function')} {json.dumps(given)}"

    def __getitem__(self, key: str) -> Tensor:
        if key.startswith(("in.", "out.", "gmm.")) and not self.tensors[key].isfinite().all():
            raise ValueError(f"{self.path.name}: {key!r} holds a NaN or an infinite number")
        return self.tensors[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose key starts with the prefix, which is cut off."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    @property
    def labels(self) -> Tensor | None:
        """(B,) int64; None for a run without classes."""
        return self.tensors.get("in.labels")

    @property
    def trajectory(self) -> Tensor:
        """The recorded states, of which the last must be the file's final one."""
        states = self["out.trajectory"]
        if "out.final" in self.tensors and error(states[-1], self["out.final"]) > 0:
            raise ValueError(f"{self.path.name}: out.final is not the last state of out.trajectory")
        return states

    def mixture(self, process: Process) -> MixtureDenoiser:
        means, variances = self["gmm.means"], self["gmm.var"]
        return MixtureDenoiser(process, means, variances, self["gmm.weights"], self["gmm.comp_class"])

    def run(
        self,
        sampler: Sampler,
        denoiser: Process | Denoiser,
        grid: Tensor,
        *,
        guidance: Guidance | Sequence[Guidance] | None = None,
        initial_state: Tensor | None = None,
        noise: Tensor | None = None,
        end: Any = "posterior-mean",
    ) -> Tensor:
        """Our states on the given times, the initial one first."""
        if isinstance(denoiser, Process):
            denoiser = self.mixture(denoiser)
        noise = self.tensors.get("in.noise") if noise is None else noise
        steps = sampler.iterate(
            apply_guidance(denoiser, guidance),
            torch.empty(0),
            grid=grid,
            labels=self.labels,
            initial_state=self["in.x_init"] if initial_state is None else initial_state,
            noise_source=RecordedNoise() if noise is None else RecordedNoise(step=noise),
            end=end,
        )
        states = list(steps)
        return torch.stack([states[0].x_t, *(step.x_s for step in states)])


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest deviation, relative to the largest value where that is above 1. inf for a NaN."""
    assert ours.shape == theirs.shape, f"ours is {tuple(ours.shape)}, the recorded {tuple(theirs.shape)}"
    assert theirs.numel(), "nothing is compared"
    return torch.nan_to_num((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1), nan=torch.inf).item()


def known(names: dict[Any, Any], name: Any, what: str) -> Any:
    """What stands under the program's name.

    Raises:
        NotCoveredError: dinit has nothing under it.
    """
    if name not in names:
        raise NotCoveredError(f"dinit has no {what} {name!r} of this program; it has {', '.join(map(str, names))}")
    return names[name]


def options(given: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The given settings of these names, as numbers."""
    return {name: float(given[name]) for name in names if given.get(name) is not None}


def like_states(values: Tensor, states: Tensor) -> Tensor:
    """(n,) with the axes of states (n, B, ...)."""
    return values.reshape(-1, *(1,) * (states.ndim - 1))


# The variance channels of the fixtures, as `oracle` describes them: centre + width (0.9 sin(2 x + label / 100)).
_NUMBER = r"(-?[\d.]+)"
_VARIANCE = re.compile(rf"(?:{_NUMBER} \+ {_NUMBER}\*\()?{_NUMBER}\*sin\({_NUMBER}\*x \+ t_model/{_NUMBER}\)")


class LearnedRange(WrappedDenoiser):
    """The mixture with the fixtures' variance channels: v = centre + width size sin(rate x + label / period)."""

    learns_variance = True

    def __init__(
        self,
        inner: Denoiser,
        label_scale: float = 1.0,
        centre: float = 0.0,
        width: float = 1.0,
        size: float = 0.9,
        rate: float = 2.0,
        period: float = 100.0,
    ) -> None:
        super().__init__(inner)
        self.label_scale, self.centre, self.width = label_scale, centre, width
        self.size, self.rate, self.period = size, rate, period

    @classmethod
    def of(cls, golden: Golden, inner: Denoiser, label_scale: float = 1.0) -> LearnedRange:
        """With the numbers that the file's `oracle` has."""
        found = _VARIANCE.search(golden.metadata.get("oracle", ""))
        if found is None:
            return cls(inner, label_scale)
        centre, width, *rest = (float(number) if number else math.nan for number in found.groups())
        return cls(inner, label_scale, *((0.0, 1.0) if math.isnan(centre) else (centre, width)), *rest)

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        label = self.label_scale * self.process.noise_label(self.scales(t))
        v = self.centre + self.width * self.size * torch.sin(self.rate * x_t + label / self.period)
        return replace(self.inner(x_t, t, cond), variance_fraction=(v + 1) / 2)


@dataclass(frozen=True, eq=False)
class Levels(Process):
    """alpha and sigma known at given times only, for schedules that dinit does not have."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    def scales(self, t: Tensor | float) -> Scales:
        t = torch.as_tensor(t, dtype=torch.float64)
        at = (self.t - t.reshape(*t.shape, 1)).abs().argmin(-1)
        nan = torch.full_like(t, torch.nan)
        return Scales(t, self.alpha[at], self.sigma[at], nan, nan)

    def time_of(self, log_snr: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class FormulaPath(Process):
    """A path given by its formula, for schedules that dinit does not have.

    Args:
        formula: t to alpha and sigma, float64.
        inverse: sigma / alpha to t, where a sampler needs it.
    """

    formula: Callable[[Tensor], tuple[Tensor, Tensor]]
    inverse: Callable[[Tensor], Tensor] | None = None

    def scales(self, t: Tensor | float) -> Scales:
        t = torch.as_tensor(t, dtype=torch.float64)
        values, slopes, *_ = torch.func.jvp(self.formula, (t,), (torch.ones_like(t),))
        return Scales(t, *values, *slopes)

    def time_of(self, log_snr: Tensor) -> Tensor:
        if self.inverse is None:
            raise NotImplementedError
        return self.inverse((-log_snr / 2).exp())
