"""The loss: a weighted squared error of the network's output, for any process and parameterization; more terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dinit.diffusion import Parameterization, Process
from dinit.training.terms import LossTerm
from dinit.training.times import TimeSampler
from dinit.training.weighting import Weighting

Network = Callable[..., Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Objective:
    """What is minimised: E over x0, eps and t of weight(t) mean |network(x_t, t) - target|^2.

    t_max: the noisy end of training times, below 1 where the pair is singular at 1. terms: added to the error.
    """

    process: Process
    parameterization: Parameterization
    weighting: Weighting
    time_sampler: TimeSampler
    t_max: float = 1.0
    terms: tuple[LossTerm, ...] = ()

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) float64 training times in [process.t_min, t_max]."""
        return self.time_sampler.times(count, self.process, self.process.t_min, self.t_max, generator)

    def losses(
        self, network: Network, x0: Tensor, labels: Tensor, t: Tensor, eps: Tensor, position: int | None = None
    ) -> Tensor:
        """(B,) float32 weighted squared error of each sample, averaged over channels and pixels, and its terms.

        network: (x, noise label, labels) -> output, and a loss (B,) beside it if it likes, as TrainingNetwork.
        x0, eps: (B, C, H, W). labels: (B,) int64.
        t: (B,) float64 on the CPU. position: of the first row in the run, handed on to the network, whose switches
        draw by it; None is without them.
        """
        k = self.process.scales(t)
        p, q = self.parameterization.coefficients(k)
        _, b = self.parameterization.posterior_mean_coefficients(k)
        weight = self.weighting.on_output(k, b)
        label = self.parameterization.noise_label(self.process, k)
        columns = [k.alpha, k.sigma, p, q, self.parameterization.input_scale(k), weight, label]
        # In float64 up to here; then one transfer to the device for all of them.
        table = torch.stack(columns).to(device=x0.device, dtype=torch.float32, non_blocking=True)
        alpha, sigma, p, q, scale = table[:5].reshape(5, -1, *(1,) * (x0.ndim - 1))
        x_t = alpha * x0 + sigma * eps
        switched = () if position is None else (position, x0)
        answer = network(scale * x_t, table[6], labels, *switched)
        output, beside = answer if isinstance(answer, tuple) else (answer, None)
        output, target = output.float(), p * x0 + q * eps
        error = (output - target).square().flatten(1).mean(1)
        loss = table[5] * sum((term.of(output, target) for term in self.terms), start=error)
        return loss if beside is None else loss + beside
