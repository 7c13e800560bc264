"""The loss against closed forms: weights, and the least loss that any network can reach."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from dinit.diffusion import PARAMETERIZATIONS, PROCESSES, Scales
from dinit.diffusion.continuous import VE, VP, LinearFlow
from dinit.diffusion.parameterization import X0, EDMPreconditioning, Epsilon, Score, V, Velocity
from dinit.training import WEIGHTINGS, Objective
from dinit.training.losses.times import UniformTimes
from dinit.training.losses.weighting import (
    LikelihoodWeighting,
    MinSNRWeighting,
    P2Weighting,
    PosteriorMeanWeighting,
    SigmoidWeighting,
    SNRWeighting,
    UniformWeighting,
)
from dinit.training.objective import NetworkOutput

T = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
MEAN, STD = 0.3, 0.6


def weight(weighting, process, parameterization) -> Tensor:
    k = process.scales(T)
    return weighting.on_output(k, parameterization.posterior_mean_coefficients(k)[1])


def snr(process) -> Tensor:
    return process.log_snr(T).exp()


@pytest.mark.parametrize("process", [VP(), LinearFlow(), VE()], ids=str)
def test_snr_weight_is_the_plain_noise_loss(process) -> None:
    torch.testing.assert_close(weight(SNRWeighting(), process, Epsilon()), torch.ones_like(T))
    k = process.scales(T)
    torch.testing.assert_close(weight(SNRWeighting(), process, Score()), k.sigma**2)


def test_min_snr_of_each_prediction() -> None:
    """Hang et al. 2023: min(snr, 5) for x0, min(snr, 5) / snr for noise, min(snr, 5) / (snr + 1) for v."""
    process, ratio = VP(), snr(VP())
    least = ratio.clamp(max=5)
    assert (least < ratio).any()
    assert (least == ratio).any()
    torch.testing.assert_close(weight(MinSNRWeighting(), process, X0()), least)
    torch.testing.assert_close(weight(MinSNRWeighting(), process, Epsilon()), least / ratio)
    torch.testing.assert_close(weight(MinSNRWeighting(), process, V()), least / (ratio + 1))


def test_edm_preconditioning_has_edm_weight() -> None:
    """A uniform weight on F is (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 on x0: Karras 2022, Table 1."""
    process, parameterization = VE(), EDMPreconditioning(0.5)
    sigma = process.scales(T).sigma
    on_x0 = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    b = parameterization.posterior_mean_coefficients(process.scales(T))[1]
    torch.testing.assert_close(on_x0 * b**2, weight(UniformWeighting(), process, parameterization))


@pytest.mark.parametrize("process", [VP(), LinearFlow(), VE()], ids=str)
def test_likelihood_weight_is_minus_half_the_derivative_of_snr(process) -> None:
    t = T.clone().requires_grad_()
    (slope,) = torch.autograd.grad(process.log_snr(t).exp().sum(), t)
    k = process.scales(T)
    torch.testing.assert_close(LikelihoodWeighting().on_x0(k), -slope / 2)


def test_p2_weight_on_the_noise() -> None:
    """Choi et al. 2022: 1 / (k + snr)^gamma on the error of the noise."""
    process, ratio = VP(), snr(VP())
    torch.testing.assert_close(weight(P2Weighting(0.5, 1.5), process, Epsilon()), (0.5 + ratio) ** -1.5)
    torch.testing.assert_close(weight(P2Weighting(2.0, 0.0), process, V()), weight(SNRWeighting(), process, V()))


def test_sigmoid_weight_of_the_bound() -> None:
    """Kingma & Gao 2023: half of -d log-SNR / dt times sigmoid(b - log-SNR), on the error of the noise."""
    process, t = LinearFlow(), T.clone().requires_grad_()
    (slope,) = torch.autograd.grad(process.log_snr(t).sum(), t)
    expected = -slope / 2 / (1 + (process.log_snr(T) - 1.5).exp())
    torch.testing.assert_close(weight(SigmoidWeighting(1.5), process, Epsilon()), expected)


class ExactNetwork:
    """What a perfect network says of data N(MEAN, STD^2), in any parameterization."""

    def __init__(self, process, parameterization, scales: Scales) -> None:
        self.parameterization, self.k = parameterization, scales.like(torch.empty(0, 1, 1, 1).double())

    def __call__(self, x_in: Tensor, *_: object) -> NetworkOutput:
        k = self.k
        x_t = x_in.double() / self.parameterization.input_scale(k)
        total = k.alpha**2 * STD**2 + k.sigma**2
        x0 = MEAN + k.alpha * STD**2 / total * (x_t - k.alpha * MEAN)
        a, b = self.parameterization.posterior_mean_coefficients(k)
        return NetworkOutput((x0 - a * x_t) / b)


PAIRS = [(p, q) for p in ("vp", "flow", "gvp", "edm", "sub-vp") for q in PARAMETERIZATIONS.names()]


@pytest.mark.parametrize(("process_name", "name"), PAIRS)
@pytest.mark.parametrize("weighting", WEIGHTINGS.names())
def test_exact_network_reaches_the_posterior_variance(process_name: str, name: str, weighting: str) -> None:
    """The least loss at t is weight(t) b^-2 STD^2 sigma^2 / (alpha^2 STD^2 + sigma^2), and no more."""
    process, parameterization = PROCESSES.create(process_name), PARAMETERIZATIONS.create(name)
    objective = Objective(process, parameterization, WEIGHTINGS.create(weighting), UniformTimes(), 0.97)
    generator = torch.Generator().manual_seed(0)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    k = process.scales(t)
    pixels = 100 * 100
    x0 = MEAN + STD * torch.randn(3, 1, 100, 100, generator=generator)
    eps = torch.randn(3, 1, 100, 100, generator=generator)
    losses = objective.losses(ExactNetwork(process, parameterization, k), x0, torch.zeros(3).long(), t, eps)
    b = parameterization.posterior_mean_coefficients(k)[1]
    variance = STD**2 * k.sigma**2 / (k.alpha**2 * STD**2 + k.sigma**2)
    expected = objective.weighting.on_output(k, b) / b**2 * variance
    # The mean square of n normal numbers has relative deviation sqrt(2 / n).
    tolerance = 4 * math.sqrt(2 / pixels)
    torch.testing.assert_close(losses.double(), expected, rtol=tolerance, atol=0)


def test_the_network_gets_scaled_input_noise_label_and_labels() -> None:
    process, parameterization = LinearFlow(), EDMPreconditioning(0.5)
    seen = {}

    def network(x: Tensor, noise_label: Tensor, labels: Tensor, position: Any, images: Any) -> NetworkOutput:
        seen.update(x=x, noise_label=noise_label, labels=labels, position=position, images=images)
        return NetworkOutput(torch.zeros_like(x))

    objective = Objective(process, parameterization, PosteriorMeanWeighting(), UniformTimes())
    x0, eps = torch.full((2, 1, 2, 2), 2.0), torch.full((2, 1, 2, 2), -1.0)
    t = torch.tensor([0.25, 0.5], dtype=torch.float64)
    objective.losses(network, x0, torch.tensor([3, 7]), t, eps, 12)
    x_t = torch.tensor([0.75 * 2 - 0.25, 0.5 * 2 - 0.5])
    scale = 1 / torch.tensor([0.25**2 + 0.75**2 * 0.25, 0.5**2 + 0.5**2 * 0.25]).sqrt()
    torch.testing.assert_close(seen["x"][:, 0, 0, 0], x_t * scale)
    torch.testing.assert_close(seen["noise_label"], torch.tensor([250.0, 500.0]))
    assert seen["labels"].tolist() == [3, 7]
    assert seen["position"] == 12
    assert torch.equal(seen["images"], x0)


def test_velocity_target_is_the_time_derivative() -> None:
    objective = Objective(LinearFlow(), Velocity(), UniformWeighting(), UniformTimes())
    x0, eps = torch.tensor([[[[1.0]]], [[[-2.0]]]]), torch.tensor([[[[0.5]]], [[[3.0]]]])
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)
    losses = objective.losses(lambda x, *_: NetworkOutput(torch.zeros_like(x)), x0, torch.zeros(2).long(), t, eps)
    torch.testing.assert_close(losses, torch.tensor([0.5**2, 5.0**2]))
