"""RED-diff: restoration by optimisation, regularised by denoising. Mardani et al. 2024."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dinit.diffusion import Scales
from dinit.inverse.measurement import Measurement
from dinit.inverse.operators.base import LinearOperator
from dinit.inverse.operators.svd import SMALLEST_INVERTED
from dinit.inverse.samplers.base import POSTERIOR_SAMPLERS, PosteriorSampler
from dinit.inverse.samplers.likelihood import data_gradient
from dinit.samplers.base import Claims, StepDenoiser, StepNoise


class _Adam(NamedTuple):
    """The image so far, Adam's moments of its gradient, and the steps taken."""

    image: Tensor
    mean: Tensor
    square: Tensor
    taken: int


@POSTERIOR_SAMPLERS.register("red-diff")
@dataclass(frozen=True)
class REDDiff(PosteriorSampler):
    """Variational restoration: Adam on the misfit to y and on a denoiser's residual. Mardani et al. 2024.

    One step at every time of the grid, from noisy to clean: the gradient is that of ||y - A(mu)||^2 / 2 plus
    weight sigma / alpha times the predicted noise less the noise that was added to mu. Its result is one image, a
    mode, and no sample: the seeds change it little.

    Source: arXiv:2305.04391, Algorithm 1; weights inverse to the signal-to-noise ratio's root.

    Args:
        measurement: What the images are known by; any differentiable operator. None for nothing.
        weight: Of the denoiser's part, above 0; 0.25 in the paper.
        lr: Learning rate of Adam, above 0; 0.1 in the paper.
        rtol: Of the start A+ y, with a linear operator: singular values up to this share of the largest count as 0,
            in [0, 1).

    Raises:
        ValueError: An option out of its range.
    """

    weight: float = 0.25
    lr: float = 0.1
    rtol: float = SMALLEST_INVERTED

    linear_only = False

    def __post_init__(self) -> None:
        for name in ("weight", "lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 <= self.rtol < 1:
            raise ValueError(f"rtol is a share of the largest singular value, in [0, 1), got {self.rtol}")

    def claims(self) -> Claims:
        return Claims(draws_per_step=1)

    def step(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, s: Scales, state: _Adam | None, noise: StepNoise
    ) -> tuple[Tensor, _Adam]:
        return self._descend(denoise, x_t, t, state, noise)

    def finish(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, state: _Adam | None, noise: StepNoise
    ) -> tuple[Tensor, _Adam]:
        return self._descend(denoise, x_t, t, state, noise)

    def _descend(
        self, denoise: StepDenoiser, x: Tensor, t: Scales, state: _Adam | None, noise: StepNoise
    ) -> tuple[Tensor, _Adam]:
        """One step of Adam at the time of t; the image, (B, C, H, W), is the state that is shown."""
        measurement: Measurement | None = self.fitted(x)
        if state is None:
            start = torch.zeros_like(x)
            if measurement is not None and isinstance(measurement.a, LinearOperator):
                shape = tuple(x.shape[1:])
                svd = measurement.a.svd(shape)
                start = svd.to_image(svd.pseudo_inverse(svd.of_measurement(measurement.y), self.rtol), shape)
            state = _Adam(start, torch.zeros_like(x), torch.zeros_like(x), 0)
        k, z = t.floats, noise(0, x)
        d = denoise(k.alpha * state.image + k.sigma * z, t)
        # sigma / alpha times (eps - z) is the image less the prediction: no division by an alpha of 0.
        change = self.weight * (state.image - d.x0)
        if measurement is not None:
            change = change - data_gradient(state.image, measurement)
        taken = state.taken + 1
        mean = 0.9 * state.mean + 0.1 * change
        square = 0.99 * state.square + 0.01 * change.square()
        fair = (square / (1 - 0.99**taken)).sqrt() + 1e-8
        image = state.image - self.lr * mean / (1 - 0.9**taken) / fair
        return image, _Adam(image, mean, square, taken)
