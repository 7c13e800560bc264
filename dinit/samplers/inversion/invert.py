"""Inversion, from data to noise: solvers run on increasing times, approximate (DDIM, Runge–Kutta) or exact.

    start = invert("bdia-ddim", denoiser, x0, steps=50, labels=[3])
    again = BDIADDIM().sample(denoiser, start.x, 50, labels=[3], initial_state=start.x, state=start.state,
    end="state")

`again` is x0 up to rounding. x0 is the state at the grid's last time: the posterior mean that a run ends with
otherwise cannot be undone. An exact solver (EDICT, BDIA) carries more than x (a coupled state, the state before),
so the inversion of a run needs the state of its last step, and a run after an inversion that of the inversion:

    last = list(EDICT().iterate(denoiser, noise, 50, end="state"))[-1]
    start = invert(EDICT(), denoiser, last.x_s, 50, state=last.state)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor

from dinit.diffusion import Denoised, Denoiser, Scales
from dinit.diffusion.condition import SupportsNormal
from dinit.diffusion.denoiser import check_denoiser
from dinit.samplers.base import SAMPLERS, Run, Sampler, SamplerSpec, Step, StepDenoiser, StepNoise
from dinit.samplers.noise import NoiseSource
from dinit.samplers.ode.ddim import DDIM
from dinit.samplers.ode.euler import Euler, Heun
from dinit.samplers.ode.flow import FlowEuler
from dinit.samplers.ode.runge_kutta import RK4, Heun3, Midpoint
from dinit.samplers.points import GridLike, sampling_points


class Reversible(Sampler):
    """A deterministic solver whose `step` also goes up, from t to s > t, as the inverse of its own step down."""


# One-step formulas that do not depend on the direction: on increasing times they solve the same ODE.
EITHER_WAY = (Euler, Heun, Midpoint, Heun3, RK4, FlowEuler)


@dataclass(frozen=True)
class Inversion:
    """Noise that `invert` found.

    Attributes:
        x: (B, C, H, W), the state at the grid's first time; its standard deviation is that of the prior there.
        state: What an exact solver needs besides x to sample the image again, for `Sampler.iterate(state=...)`.
        nfe: Network evaluations per image.
    """

    x: Tensor
    state: Any
    nfe: int


def invert(
    sampler: SamplerSpec,
    denoiser: Denoiser,
    x: Tensor,
    steps: int | None = None,
    *,
    labels: Tensor | Sequence[int] | None = None,
    grid: GridLike | None = None,
    state: Any = None,
    noise_source: SupportsNormal | None = None,
    seed: int | Sequence[int] = 0,
) -> Inversion:
    """The noise from which the sampler makes x. Arguments and errors as `ascend`."""
    steps_up = ascend(
        sampler, denoiser, x, steps, labels=labels, grid=grid, state=state, noise_source=noise_source, seed=seed
    )
    (last,) = deque(steps_up, maxlen=1)
    return Inversion(last.x_s, last.state, last.nfe)


def ascend(
    sampler: SamplerSpec,
    denoiser: Denoiser,
    x: Tensor,
    steps: int | None = None,
    *,
    labels: Tensor | Sequence[int] | None = None,
    grid: GridLike | None = None,
    state: Any = None,
    noise_source: SupportsNormal | None = None,
    seed: int | Sequence[int] = 0,
) -> Iterator[Step]:
    """Run the sampler from the grid's last time up to its first, yielding every step.

    Args:
        sampler: A Sampler, a registered name or mapping, of a sampler that can go up; 'ddim' stands for
            'ddim-inverse'.
        denoiser: A network read as a posterior mean, or a guidance around one. Guidance gets the step number that
            a time has in the sampling run.
        x: (B, C, H, W), the state at the grid's last time. Clean images take its place in published practice too,
            as the noise there is small.
        steps: Of the sampling run, whose times are taken backwards.
        labels: (B,) class labels; None for the denoiser's own, or null.
        grid: Of the sampling run: it decreases here as there.
        state: The last `Step.state` of the run that is undone; None where x comes from elsewhere.
        noise_source: For guidance that draws noise; None for `NoiseSource.from_seed(seed)`.
        seed: Of the noise source, where none is given: one seed, or one an image.

    Returns:
        An iterator over the steps. The arguments are checked at once.

    Raises:
        ValueError: A sampler that cannot go up; and as `Sampler.iterate`.
    """
    check_denoiser(denoiser)
    upwards = upward(SAMPLERS.create(sampler))
    chosen = upwards.grid_for(denoiser.process) if grid is None else grid
    points = sampling_points(denoiser, steps, chosen, "state")
    places = {k.floats.time: i for i, k in enumerate(points)}
    source: SupportsNormal = noise_source or NoiseSource.from_seed(seed, x.shape[0])
    cond = denoiser.condition(labels, x.shape[0], x.device)
    run = Run.prepare(upwards, denoiser, points[::-1], len(points) - 1, cond, source, state)
    return run.iterate(x, lambda i: _Placed(denoiser, run.cond, run.inner[i], places=places))


def upward(sampler: Sampler) -> Sampler:
    """The sampler whose step also goes up: DDIMInverse for DDIM, else itself. ValueError where there is none."""
    if isinstance(sampler, DDIM) and not sampler.stochastic:
        return DDIMInverse()
    if isinstance(sampler, (Reversible, *EITHER_WAY)) and not sampler.stochastic:
        return sampler
    why = "it adds noise" if sampler.stochastic else "its formula holds from noise to data only"
    fits = [name for name in SAMPLERS if issubclass(SAMPLERS[name], (Reversible, *EITHER_WAY))]
    raise ValueError(f"{sampler} cannot run from data to noise: {why}; samplers that can: {', '.join(fits)}")


@dataclass
class _Placed(StepDenoiser):
    """A denoiser whose guidance gets the number that the step has in the sampling run, by its first evaluation."""

    places: dict[float, int] = field(default_factory=dict)

    def __call__(self, x_t: Tensor, t: Scales) -> Denoised:
        if not self.calls:
            self.cond = self.cond.at_step(min(self.places[t.floats.time], len(self.places) - 2))
        return super().__call__(x_t, t)


def wide(x: Tensor) -> Tensor:
    """x in float64, where the device has it.

    Undoing a damped mode multiplies its rounding errors at every step. In float64 they stay below the resolution of
    float32, in which the network is evaluated.
    """
    return x if x.device.type == "mps" else x.double()


@SAMPLERS.register("ddim-inverse", special_case_of="ddim")
@dataclass(frozen=True)
class DDIMInverse(Reversible):
    r"""DDIM without noise, in either direction. Song et al. 2021 (DDIM), Section 4.3; arXiv:2010.02502.

    Formula: $x_s = \alpha_s x_0 + \sigma_s \varepsilon,\quad s < t \text{ or } s > t$

    Down it is 'ddim'. Up it is the same formula between the same times, which is not the inverse of the step down:
    the error of a round trip is of first order.

    Args:
        iterations: Evaluations spent on each step up to solve for the state that the step down comes from, by
            fixed-point iteration, as Pan et al. 2023 (AIDI); it converges where the steps are short. 0 is the plain
            step.

    Raises:
        ValueError: A negative number of iterations; from a run from noise to data, any.
    """

    iterations: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.iterations, bool) or not isinstance(self.iterations, int) or self.iterations < 0:
            raise ValueError(f"iterations must be a whole number, at least 0; got {self.iterations!r}")

    def check(self, denoiser: Denoiser, points: list[Scales]) -> None:
        if self.iterations and len(points) > 1 and points[0].floats.time > points[-1].floats.time:
            raise ValueError(
                f"iterations = {self.iterations} solves for the step from data to noise and does nothing in a run "
                "from noise to data: leave it out there"
            )
        if self.iterations:
            check_invertible_steps(self, points)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: None, noise: StepNoise
    ) -> tuple[Tensor, None]:
        if s.floats.time < t.floats.time or not self.iterations:
            d = denoise(x_t, t)
            return s.alpha * d.x0 + s.sigma * d.eps, None
        x_s = x_t
        for _ in range(self.iterations):
            carry, push = split(denoise(x_s, s), s, t, "eps")
            x_s = (x_t - push) / carry
        return x_s, None


def split(d: Denoised, t: Scales, s: Scales, network: Literal["eps", "v"]) -> tuple[Tensor, Tensor]:
    """DDIM's step from t down to s as carry x_t + push, with the network's prediction in the push.

    Args:
        d: The denoised batch at t.
        t: Start of the step.
        s: End of the step.
        network: The prediction that is held fixed while x_t is moved. 'eps' is Song et al. 2021 (DDIM), Eq. 13,
            whose carry alpha_s / alpha_t is at least 1, and infinite from alpha = 0: there 'v' takes its place.
            'v' is a rotation on variance-preserving paths, with a carry of at most 1.

    Returns:
        The factor carry, and push (B, C, H, W).
    """
    if network == "eps" and t.floats.alpha > 0:
        carry = s.alpha / t.alpha
        return carry, (s.sigma - carry * t.sigma) * d.eps
    carry = (s.alpha * t.alpha + s.sigma * t.sigma) / (t.alpha**2 + t.sigma**2)
    return carry, s.alpha * d.x0 + s.sigma * d.eps - carry * d.x_t


def check_invertible_steps(sampler: Sampler, points: list[Scales]) -> None:
    """ValueError for one step between pure noise and clean data: nothing of x_t is left in x_s to find it by."""
    for a, b in pairwise(points):
        noisy, clean = (a, b) if a.floats.time > b.floats.time else (b, a)
        if noisy.floats.alpha == 0 and clean.floats.sigma == 0:
            raise ValueError(
                f"{sampler} cannot step between pure noise (alpha = 0) and clean data (sigma = 0) at once and be "
                "inverted: put a time between them"
            )
