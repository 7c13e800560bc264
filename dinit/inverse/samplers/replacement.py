"""Replacement: what is known of the image is overwritten in every state. Song et al. 2021; Lugmayr et al. 2022."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from dinit.diffusion import Denoiser, Process, Scales
from dinit.inverse.measurement import Measurement
from dinit.inverse.samplers.base import POSTERIOR_SAMPLERS, LaterDraws, PosteriorSampler
from dinit.samplers.base import SAMPLERS, Claims, Sampler, StepDenoiser, StepNoise
from dinit.samplers.grids.base import TimeGrid
from dinit.samplers.ode.ddim import transition_variance
from dinit.samplers.points import End


class _Plan(NamedTuple):
    """State of a run: its times, where in them it is, and the solver's own state."""

    points: list[Scales]
    index: int
    inner: Any


@POSTERIOR_SAMPLERS.register("replace")
@dataclass(frozen=True)
class Replace(PosteriorSampler):
    """Replacement: the known coefficients of every state are drawn from the measurement. Song et al. 2021.

    After each step of a solver, the part of x_s that the measurement determines is overwritten by that of alpha y +
    sigma z. For a mask it is the known pixels, for other operators the coefficients of the singular vectors; the
    rest follows the unconditional step. It ignores what the known part should say of the rest at the same level,
    so its samples are only near p(x0 | y); `resamples` repeats every step, from noise that is added again, and
    brings them nearer.

    Source: arXiv:2011.13456, Appendix I.2 and I.3 (inpainting, colourization).

    Args:
        measurement: What the images are known by, with a linear operator; None for nothing.
        solver: Whose steps are taken.
        resamples: How many times each step is taken, at least 1.

    Raises:
        ValueError: resamples below 1; an unknown solver, or one that is adaptive; from a run, an operator that is
            not linear.
    """

    solver: Sampler | str | dict[str, Any] = "ddpm"
    resamples: int = 1
    _made: Sampler = field(init=False, repr=False, compare=False)

    @property
    def jump(self) -> int:
        """How many steps of the grid are repeated together."""
        return 1

    def __post_init__(self) -> None:
        made = SAMPLERS.create(self.solver)
        if not isinstance(made, Sampler):
            raise ValueError(f"solver must be a sampler, a name or a mapping, got {self.solver!r}")
        if made.claims().cost_depends_on == "state":
            raise ValueError(f"solver must not be adaptive, and {self.solver!r} is: use 'ddpm' or 'ddim'")
        if self.resamples < 1:
            raise ValueError(f"resamples must be at least 1, got {self.resamples}")
        object.__setattr__(self, "_made", made)

    def claims(self) -> Claims:
        own = self._made.claims()
        steps = self._steps_of_a_block() if self.jump > 1 else self.resamples
        return Claims(
            nfe_per_step=own.nfe_per_step * (self.resamples if self.jump == 1 else 1),
            draws_per_step=steps * (own.draws_per_step + 2),
            cost_depends_on="steps" if self.jump == 1 and own.cost_depends_on == "steps" else "times",
        )

    def _steps_of_a_block(self) -> int:
        """Steps that the last step of a block may take: itself, and the block again for every further resample."""
        return 1 + (self.resamples - 1) * self.jump

    def grid_for(self, process: Process) -> TimeGrid:
        return self._made.grid_for(process)

    def end_for(self, process: Process) -> End:
        return "posterior-mean"

    def inner_times(self, denoiser: Denoiser, t: Scales, s: Scales, total: int) -> Tensor:
        return self._made.inner_times(denoiser, t, s, total)

    def init(self, denoiser: Denoiser, points: list[Scales], total: int) -> _Plan:
        return _Plan(points, 0, self._made.init(denoiser, points, total))

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: _Plan, noise: StepNoise
    ) -> tuple[Tensor, _Plan]:
        measurement = self.fitted(x_t)
        width = self._made.claims().draws_per_step + 2  # the solver's, of the known part, of the way back
        points, index, taken = state.points, state.index, 0

        def advance(x: Tensor, i: int, inner: Any) -> tuple[Tensor, Any]:
            nonlocal taken
            later = cast("StepNoise", LaterDraws(noise, taken * width))
            x, inner = self._made.step(denoise, x, points[i], points[i + 1], inner, later)
            taken += 1
            if measurement is None:
                return x, inner
            return overwrite(x, points[i + 1], measurement, noise((taken - 1) * width + width - 2, x)), inner

        x, inner = advance(x_t, index, state.inner)
        if (index + 1) % self.jump == 0 and (measurement is None or _is_known(points[index + 1], measurement, x_t)):
            for _ in range(self.resamples - 1):
                first = index + 1 - self.jump
                x = self._back(x, points[index + 1], points[first], noise(taken * width - 1, x))
                for i in range(first, index + 1):
                    x, inner = advance(x, i, inner)
        return x, _Plan(points, index + 1, inner)

    @staticmethod
    def _back(x: Tensor, s: Scales, t: Scales, z: Tensor) -> Tensor:
        """x_t drawn from p(x_t | x_s), for s < t."""
        a, b = t.floats, s.floats
        return a.alpha / b.alpha * x + math.sqrt(max(transition_variance(a, b), 0.0)) * z

    def finish(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, state: _Plan, noise: StepNoise
    ) -> tuple[Tensor, _Plan]:
        x0, inner = self._made.finish(denoise, x_t, t, state.inner, noise)
        measurement = self.fitted(x_t)
        if measurement is not None and measurement.noise_std == 0:
            x0 = keep_known(x0, measurement)
        return x0, _Plan(state.points, state.index, inner)


@POSTERIOR_SAMPLERS.register("repaint")
@dataclass(frozen=True)
class RePaint(Replace):
    """RePaint: replacement whose steps are repeated in blocks, from noise that is added again. Lugmayr et al. 2022.

    Source: arXiv:2201.09865, Algorithm 1 and Appendix B; its 250 steps of DDPM.

    Args:
        measurement: What the images are known by, with a linear operator; None for nothing.
        solver: Whose steps are taken.
        resamples: How many times each block of steps is taken, at least 1.
        jump_length: Steps in a block, at least 1. A block that the grid has no room for is not repeated.

    Raises:
        ValueError: An option out of its range; an unknown solver, or one that is adaptive; from a run, an operator
            that is not linear.
    """

    resamples: int = 10
    jump_length: int = 10

    @property
    def jump(self) -> int:
        return self.jump_length

    def __post_init__(self) -> None:
        if self.jump_length < 1:
            raise ValueError(f"jump_length must be at least 1, got {self.jump_length}")
        super().__post_init__()


def overwrite(x: Tensor, k: Scales, measurement: Measurement, z: Tensor) -> Tensor:
    """A state whose known coefficients are drawn from the measurement, as those of alpha x0 + sigma z.

    Args:
        x: (B, C, H, W), at the time of k.
        k: Scales of one time.
        measurement: With a row for each of x, and a linear operator.
        z: (B, C, H, W) standard normal.

    Returns:
        (B, C, H, W). The noise in y, over the singular value, counts towards sigma.
    """
    alpha, sigma = k.floats.alpha, k.floats.sigma
    shape = tuple(x.shape[1:])
    operator = measurement.linear("replacement")
    if measurement.noise_std == 0:
        target = alpha * measurement.y + sigma * operator.apply(z)
        return x + operator.pseudo_inverse(target - operator.apply(x), shape)
    svd = operator.svd(shape)
    values = svd.values_on(x)
    rank = len(values)
    own = alpha * measurement.noise_std / values  # of y in x_s
    rest = (sigma**2 - own**2).clamp(min=0).sqrt()
    target = alpha * svd.of_measurement(measurement.y) / values + rest * svd.of_image(z)[:, :rank]
    # Where the state is cleaner than y, it has followed y down to that noise, and the solver goes on alone.
    change = torch.where(own <= sigma, target - svd.of_image(x)[:, :rank], torch.zeros_like(target))
    missing = torch.Size(shape).numel() - rank
    return x + svd.to_image(torch.nn.functional.pad(change, (0, missing)), shape)


def _is_known(k: Scales, measurement: Measurement, x: Tensor) -> bool:
    """Whether every known coefficient of a state at this time is overwritten, so that a step may be repeated."""
    if measurement.noise_std == 0:
        return True
    shape = tuple(x.shape[1:])
    least = float(measurement.linear("replacement").svd(shape).values.min())  # on the CPU
    return k.floats.alpha * measurement.noise_std <= k.floats.sigma * least


def keep_known(x0: Tensor, measurement: Measurement) -> Tensor:
    """The image (B, C, H, W) that is nearest to x0 of all with A x = y."""
    operator = measurement.linear("replacement")
    return x0 + operator.pseudo_inverse(measurement.residual(x0), tuple(x0.shape[1:]))
