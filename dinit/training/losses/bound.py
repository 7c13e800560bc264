"""Variational bound of a chain, which trains a learned variance. Nichol & Dhariwal 2021, Sec. 3.1 and Eq. 16."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from dinit.devices import upload
from dinit.diffusion import Process
from dinit.diffusion.discrete import BetaChain
from dinit.likelihood.bound import discretised_log_prob, normal_kl, posterior_variance
from dinit.samplers.ode.ddim import transition_variance


def check_chain(process: Process) -> BetaChain:
    """The process. ValueError unless it is a chain of betas, whose steps have a variance to learn."""
    if not isinstance(process, BetaChain):
        raise ValueError(
            "learn_sigma: true learns the variance of the steps of a chain of betas, and "
            f"{type(process).__name__} is not one; set it to false, or the process to vp-discrete"
        )
    return process


def variational_bits(process: BetaChain, t: Tensor, x0: Tensor, posterior_mean: Tensor, fraction: Tensor) -> Tensor:
    """(B,) float32: the bound's term of the step that starts at time t, in bits/dim.

    It is the divergence from q(x_s | x_t, x0), where s is one step of the chain before t; at the chain's first
    step, the decoder's -log p(x0 | x_t). x0, posterior_mean, fraction: (B, C, H, W), fraction as in `Denoised`. t:
    (B,) float64 on the CPU. The posterior mean gets no gradient, because the squared error trains it.
    """
    lower, upper, shift, right, last = (
        upload(v, x0.device, torch.float32).reshape(-1, *(1,) * (x0.ndim - 1)) for v in _step(process, t)
    )
    log_variance = fraction * upper + (1 - fraction) * lower
    mean = posterior_mean.detach()
    divergence = normal_kl(shift * x0, right, shift * mean, log_variance)
    decoder = -discretised_log_prob(x0, mean, (log_variance / 2).exp())
    return torch.where(last > 0, decoder, divergence).flatten(1).mean(1) / math.log(2)


def _step(process: BetaChain, t: Tensor) -> tuple[Tensor, ...]:
    """Of the step from t, (B,) float64: bounds of the log variance, the weight of x0 in the mean of x_s, the log
    variance of q(x_s | x_t, x0), and whether the step ends at clean data. There the lower bound is that of the
    second step, as in the published code: its own is -inf.
    """
    one = 1 / process.num_steps
    last = t < 1.5 * one
    k, s = process.scales(t), process.scales(torch.where(last, one, t - one))
    between = transition_variance(k, s).clamp(min=torch.finfo(torch.float64).tiny)  # where t is s, and last is true
    upper = torch.where(last, 2 * k.sigma.log(), between.log())
    right = torch.where(last, _second(process), posterior_variance(k, s).log())
    shift = torch.where(last, 1.0, s.alpha * between / k.sigma**2)
    return right, upper, shift, right, last


@cache
def _second(process: BetaChain) -> float:
    """log variance of q(x_1 | x_2, x0), by steps of the chain."""
    one = 1 / process.num_steps
    return float(posterior_variance(process.scales(2 * one), process.scales(one)).log())
