"""Linear updates: a step of a multistep solver as a weighted sum of a state and of past evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from dinit.diffusion import Denoised, Scales
from dinit.diffusion.denoised import weighted
from dinit.diffusion.process import ScalarScales
from dinit.samplers.multistep.exponential_weights import DDIM_FORM, ExponentialForm, ddim_weights
from dinit.samplers.multistep.ode_variables import NOISE_LEVEL, ODEVariable


class Evaluation(NamedTuple):
    """A past evaluation of the network.

    Attributes:
        denoised: What the denoiser returned.
        state: The state that the trajectory continued from; after a correction, the corrected one.
        slopes: Slopes that steps have used.
    """

    denoised: Denoised
    state: Tensor
    slopes: dict[ODEVariable, Tensor]

    def slope(self, ode: ODEVariable) -> Tensor:
        """Its slope in a change of variables, computed once."""
        if ode not in self.slopes:
            self.slopes[ode] = ode.slope(self.denoised)
        return self.slopes[ode]

    @classmethod
    def in_float64(cls, denoised: Denoised, state: Tensor) -> Evaluation:
        """The evaluation of a state that is known in float64, with its slope in sigma / alpha in float64.

        Args:
            denoised: What the denoiser returned for the state, rounded to the network's dtype.
            state: The state before rounding.
        """
        k = denoised.scales.factors
        implied = denoised.renoise_eps is None and denoised.clean_eps is None and isinstance(k, ScalarScales)
        slopes = {NOISE_LEVEL: (state - k.alpha * denoised.x0) / k.sigma} if implied and k.sigma else {}
        return cls(denoised, state, slopes)


class LinearUpdate(NamedTuple):
    """x = state_weight * state + sum_j weights[j] * F_j.

    Attributes:
        form: The form whose slope is F.
        state_weight: Weight of the state.
        weights: Weights of F, one for each of `evaluations`.
        steps_back: How many evaluations ago the state is taken from; 0 is the newest.
        evaluations: Which evaluations take part, counted back from the newest.
    """

    form: ExponentialForm
    state_weight: float
    weights: list[float]
    steps_back: int
    evaluations: tuple[int, ...]

    def apply(self, state: Tensor, past: Sequence[Evaluation]) -> Tensor:
        """x, (B, C, H, W), from a state and the evaluations so far, the newest first."""
        x, factor, ode = state, self.state_weight, self.form.ode
        for j, w in zip(self.evaluations, self.weights, strict=True):
            if w:
                x, factor = weighted(factor, x, w, past[j].slope(ode)), 1.0
        return x if factor == 1 else factor * x


Stages = tuple[tuple[Scales, LinearUpdate], ...]
"""The inner evaluations of a step: the scales of each, and the update that leads there."""


class StepUpdates(NamedTuple):
    """One step: its inner evaluations, the update to s, and its correction.

    Attributes:
        stages: Inner evaluations.
        advance: The update to s.
        correction: The update to s again, once s is evaluated; None: no correction.
    """

    stages: Stages
    advance: LinearUpdate
    correction: LinearUpdate | None = None


def ddim_update(t: Scales, s: Scales, steps_back: int = 0) -> LinearUpdate:
    """DDIM's step from the state at t, `steps_back` evaluations ago, to s."""
    return LinearUpdate(DDIM_FORM, *ddim_weights(t, s), steps_back, (0,))
