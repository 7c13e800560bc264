"""Training loss: a weighted squared error of the network's output, for any process and parameterization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from dinit.devices import upload
from dinit.diffusion import Parameterization, Process
from dinit.diffusion.parameterization import Preconditioning, precondition, split_variance
from dinit.diffusion.process import expand
from dinit.training.losses.bound import check_chain, variational_bits
from dinit.training.losses.terms import LossTerm
from dinit.training.losses.times import TimeSampler
from dinit.training.losses.weighting import Weighting


class NetworkOutput(NamedTuple):
    """What a network gives in training.

    Args:
        prediction: (B, C, H, W), or (B, 2C, H, W) where the network learns its variance.
        alignment: (B,) the loss of a representation alignment; None without one.
    """

    prediction: Tensor
    alignment: Tensor | None = None


class Network(Protocol):
    """A network as the objective calls it; `TrainingNetwork` is the usual one."""

    def __call__(
        self,
        x: Tensor,
        noise_label: Tensor,
        labels: Tensor,
        position: int | None = None,
        images: Tensor | None = None,
        /,
    ) -> NetworkOutput:
        """Predict from scaled noisy images.

        Args:
            x: (B, C, H, W), the scaled noisy images.
            noise_label: (B,), the time input.
            labels: (B,) int64.
            position: Number of the first image in the run, which seeds a recipe's switches (label dropout,
                routing); None leaves the switches out.
            images: (B, C, H, W) in [-1, 1], the clean images.

        Returns:
            The prediction, and an alignment's loss where the recipe has one.
        """
        ...


@dataclass(frozen=True)
class Objective:
    """The minimised expectation over x0, eps and t: weight(t) mean |network(x_t, t) - target|^2, and further terms.

    Args:
        process: The noise process.
        parameterization: What the network predicts.
        weighting: The factor on the squared error at each time.
        time_sampler: The distribution of training times.
        t_max: The largest training time, in (0, 1]; below 1 where process and parameterization are singular at 1.
        terms: Terms added to the squared error before it is weighted.
        variational: Weight of the variational bound in bits/dim, for a network that learns its variance.
    """

    process: Process
    parameterization: Parameterization
    weighting: Weighting
    time_sampler: TimeSampler
    t_max: float = 1.0
    terms: tuple[LossTerm, ...] = ()
    variational: float = 0.001

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the training times of one batch.

        Args:
            count: Images in the batch.
            generator: Random numbers, on the CPU.

        Returns:
            (count,) float64 on the CPU, in [process.t_min, t_max].
        """
        return self.time_sampler.times(count, self.process, self.process.t_min, self.t_max, generator)

    def losses(
        self, network: Network, x0: Tensor, labels: Tensor, t: Tensor, eps: Tensor, position: int | None = None
    ) -> Tensor:
        """The loss of each image: its weighted squared error, averaged over channels and pixels, and further terms.

        Args:
            network: (x, noise label, labels) -> `NetworkOutput`, as TrainingNetwork.
            x0: (B, C, H, W) clean images.
            labels: (B,) int64.
            t: (B,) float64 on the CPU, in [process.t_min, t_max].
            eps: (B, C, H, W) standard normal noise.
            position: Number of the first image in the run, which seeds the network's switches (label dropout,
                routing); None leaves the switches out.

        Returns:
            (B,) float32.
        """
        k = self.process.scales(t)
        exact = precondition(self.process, self.parameterization, k)
        columns = [self.weighting.on_output(k, exact.b), k.alpha, k.sigma, *exact.tensors]
        # In float64 up to here; then one transfer to the device for all of them.
        weight, alpha, sigma, *factors = upload(torch.stack(columns), x0.device, torch.float32).unbind()
        pre = Preconditioning(*factors).like(x0)
        x_t = expand(alpha, x0) * x0 + expand(sigma, x0) * eps
        prediction, alignment = network(pre.input_scale * x_t, pre.noise_label, labels, position, x0)
        output, fraction = split_variance(prediction.float(), x0.shape[1])
        target = pre.target(x0, eps)
        error = (output - target).square().flatten(1).mean(1)
        loss = weight * sum((term.loss(output, target) for term in self.terms), start=error)
        if fraction is not None:
            loss = loss + self._bound(t, x0, pre.posterior_mean(output, x_t), fraction)
        return loss if alignment is None else loss + alignment

    def _bound(self, t: Tensor, x0: Tensor, posterior_mean: Tensor, fraction: Tensor) -> Tensor:
        """(B,) the bound of all steps, estimated by its term at t. ValueError for a process that is no chain."""
        chain = check_chain(self.process)
        return self.variational * chain.num_steps * variational_bits(chain, t, x0, posterior_mean, fraction)
