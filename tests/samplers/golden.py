"""Reading the golden files of published samplers, and running ours from the same start."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Process, Scales, WrappedDenoiser
from dinit.models.analytic import MixtureDenoiser
from dinit.samplers import RecordedNoise, Sampler
from dinit.samplers.guidance import Guidance, apply_guidance

Pairs = list[tuple[Tensor, Tensor]]
CASES: dict[str, Callable[[Golden], Pairs]] = {}
TOLERANCES: dict[str, float] = {}  # by pattern, where it is not 1e-10


def covers(
    *patterns: str, tolerance: float = 1e-10
) -> Callable[[Callable[[Golden], Pairs]], Callable[[Golden], Pairs]]:
    """Decorator: the function gives pairs (ours, golden) for files whose names match. Longer patterns win."""
    TOLERANCES.update({pattern: tolerance for pattern in patterns if tolerance > 1e-10})

    def enter(case: Callable[[Golden], Pairs]) -> Callable[[Golden], Pairs]:
        CASES.update(dict.fromkeys(patterns, case))
        return case

    return enter


@dataclass(frozen=True)
class Golden:
    """One file: tensors and metadata of a published run on the analytic mixture."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def metadata(self) -> dict[str, str]:
        with safe_open(self.path, "pt") as file:
            return file.metadata()

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        with safe_open(self.path, "pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118

    @property
    def kwargs(self) -> dict[str, Any]:
        return json.loads(self.metadata["kwargs"])

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose key starts with the prefix, which is cut off."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def mixture(self, process: Process) -> MixtureDenoiser:
        prior = self.under("gmm.")
        return MixtureDenoiser(process, prior["means"], prior["var"], prior["weights"], prior["comp_class"])

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
            labels=self["in.labels"],
            initial_state=self["in.x_init"] if initial_state is None else initial_state,
            noise_source=RecordedNoise() if noise is None else RecordedNoise(step=noise),
            end=end,
        )
        states = list(steps)
        return torch.stack([states[0].x_t, *(step.x_s for step in states)])


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest deviation, relative to the largest value where that is above 1. inf for a NaN."""
    assert ours.shape == theirs.shape
    return torch.nan_to_num((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1), nan=torch.inf).item()


class LearnedRange(WrappedDenoiser):
    """The mixture with the variance channels of the fixtures: v = centre + width 0.9 sin(2 x + label / 100)."""

    learns_variance = True

    def __init__(self, inner: Denoiser, label_scale: float = 1.0, centre: float = 0.0, width: float = 1.0) -> None:
        super().__init__(inner)
        self.label_scale, self.centre, self.width = label_scale, centre, width

    def __call__(self, x_t: Tensor, t: Scales | Tensor | float, cond: Condition) -> Denoised:
        label = self.label_scale * self.process.noise_label(self.scales(t))
        v = self.centre + self.width * 0.9 * torch.sin(2 * x_t + label / 100)
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
