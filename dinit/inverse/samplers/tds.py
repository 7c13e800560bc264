"""Twisted diffusion sampler: sequential Monte Carlo with particles. Wu et al. 2023."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Scales
from dinit.inverse.guidance.base import linearise, predict_with_vjp
from dinit.inverse.guidance.solving import minimal_residual
from dinit.inverse.measurement import Measurement
from dinit.inverse.samplers.base import POSTERIOR_SAMPLERS, PosteriorSampler
from dinit.inverse.samplers.likelihood import sum_squares
from dinit.samplers.base import Claims, StepDenoiser, StepNoise
from dinit.samplers.ode.ddim import transition_variance

Covariance = Literal["isotropic", "jacobian"]


class Particles(NamedTuple):
    """Particles of every image, in blocks: rows p B to (p + 1) B - 1 are the p-th particles of the B images.

    At the end of a run they are, with their weights, all samples that it has: many of p(x0 | y) of one image at the
    cost of one each.

    Attributes:
        x: (P B, C, H, W): states, and at the end of a run images.
        log_weights: (P, B), relative.
        log_twist: (P, B), log p(y | x) as approximated where the particles came from; 0 at first.
        log_evidence: (B,), the estimate so far of log p(y), of the approximate model of the last step.
        cond: The condition of all particles.
    """

    x: Tensor
    log_weights: Tensor
    log_twist: Tensor
    log_evidence: Tensor
    cond: Condition


@POSTERIOR_SAMPLERS.register("tds")
@dataclass(frozen=True)
class TDS(PosteriorSampler):
    """Twisted diffusion sampler: particles of DDPM, drawn towards y and weighted. Wu et al. 2023.

    The steps of DDPM are shifted by the gradient of log p(y | x_t), which is approximated by y given the posterior
    mean; weights correct what that approximation gets wrong, so that many particles give DDPM's own p(x0 | y),
    whatever the approximation. One particle of each image, drawn by its weight, is the sample; all of them are in
    the state of the last step. The approximation is N(y; A E[x0 | x_t], sigma_y^2 I + A C A*), wider than the
    paper's, in which C = 0.

    Source: arXiv:2306.17775, Algorithm 1 and Eq. 9 to 11.

    Args:
        measurement: What the images are known by, with a linear operator; None for nothing.
        particles: Of each image, at least 1; each is an evaluation of the network and a vector-Jacobian product.
        threshold: Particles are resampled where their effective number is below this share, in [0, 1].
        covariance: C, of x0 given x_t. 'isotropic' is sigma^2 / (alpha^2 + sigma^2) I, that of independent data of
            variance 1. 'jacobian' is sigma^2 / alpha times the denoiser's Jacobian, as in `mmps`: on a mixture the
            steps are then exact once the component is settled, and far fewer particles weigh the components.
        iterations: Of the solver for 'jacobian', at least 1, each a vector-Jacobian product.

    Raises:
        ValueError: An option out of its range; from a run, an operator that is not linear.
    """

    particles: int = 8
    threshold: float = 0.5
    covariance: Covariance = "isotropic"
    iterations: int = 5

    def __post_init__(self) -> None:
        if self.particles < 1:
            raise ValueError(f"particles must be at least 1, got {self.particles}")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is a share of the particles, in [0, 1], got {self.threshold}")
        if self.covariance not in get_args(Covariance):
            raise ValueError(f"covariance is one of {', '.join(get_args(Covariance))}, got {self.covariance!r}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")

    def claims(self) -> Claims:
        return Claims(nfe_per_step=self.particles, draws_per_step=2)

    def nfe(self, steps: int) -> int:
        return steps * self.particles

    def step(
        self,
        denoise: StepDenoiser,
        x_t: Tensor,
        t: Scales,
        s: Scales,
        state: Particles | None,
        noise: StepNoise,
    ) -> tuple[Tensor, Particles]:
        now = self._begin(denoise, x_t, t, noise) if state is None else state
        d, log_twist, slope = self._twisted(denoise, now, t, final=False)
        now, (x0, slope) = self._resample(_weighed(now, log_twist), noise, (d.x0, slope))
        a, b = t.floats, s.floats
        added = max(transition_variance(a, b), 0.0)
        # x_s given x_t and x0 is N(from_x0 x0 + from_x_t x_t, variance); Ho et al. 2020, Eq. 7.
        variance = added * (b.sigma / a.sigma) ** 2
        from_x0, from_x_t = b.alpha * added / a.sigma**2, a.alpha / b.alpha * (b.sigma / a.sigma) ** 2
        z = _as_blocks(noise(1, x_t.new_empty(len(x_t), self.particles, *x_t.shape[1:])))
        shift, std = from_x0 * slope, math.sqrt(variance)
        x_s = from_x0 * x0 + from_x_t * now.x + shift + std * z
        # log of the model's density of x_s over the proposal's.
        correction = -(sum_squares(shift) / 2 + std * (shift * z).flatten(1).sum(1)) / max(variance, 1e-300)
        weights = now.log_weights + correction.reshape(self.particles, -1)
        return x_s[: len(x_t)], now._replace(x=x_s, log_weights=weights)

    def finish(
        self, denoise: StepDenoiser, x_t: Tensor, t: Scales, state: Particles | None, noise: StepNoise
    ) -> tuple[Tensor, Particles]:
        now = self._begin(denoise, x_t, t, noise) if state is None else state
        d, log_twist, _ = self._twisted(denoise, now, t, final=True)
        now = _weighed(now, log_twist)
        chosen = _systematic(now.log_weights, 1, noise(0, x_t.new_empty(len(x_t), 1))[:, 0])[0]
        rows = chosen * len(x_t) + torch.arange(len(x_t), device=x_t.device)
        evidence = now.log_evidence + torch.logsumexp(now.log_weights, 0) - math.log(self.particles)
        return d.x0[rows], now._replace(x=d.x0, log_evidence=evidence)

    def _begin(self, denoise: StepDenoiser, x: Tensor, t: Scales, noise: StepNoise) -> Particles:
        """Particles at the first time: the given states, and for the others of each image fresh noise."""
        self.fitted(x)  # refuses what does not fit the images, before there are more of them
        count = self.particles
        draws = _as_blocks(noise(0, x.new_empty(len(x), count, *x.shape[1:])))[len(x) :]
        std = denoise.process.prior_std(t).item()  # on the CPU
        zero = x.new_zeros(count, len(x))
        cond = reduce(lambda one, more: one.joined(more), [denoise.cond] * count)
        return Particles(torch.cat([x, std * draws]), zero, zero, zero[0], cond)

    def _twisted(
        self, denoise: StepDenoiser, now: Particles, t: Scales, final: bool
    ) -> tuple[Denoised, Tensor, Tensor]:
        """The prediction at the particles, log p(y | x_t) (P, B), and what y adds to the posterior mean.

        final: the likelihood itself, of the posterior mean, where y has noise.
        """
        measurement = self.fitted(now.x)
        denoise.calls += self.particles
        if measurement is None or final:
            d = denoise.denoiser(now.x, t, now.cond)
            log_twist = torch.zeros_like(now.log_weights)
            if measurement is not None:
                log_twist = _log_likelihood(d.x0, measurement, 0.0 if measurement.noise_std else _variance(t))[0]
            slope = torch.zeros_like(d.x0)
        elif self.covariance == "jacobian":
            d, log_twist, slope = _moment_matching(denoise, now, t, measurement, self.iterations)
        else:
            d, vjp = predict_with_vjp(denoise.denoiser, now.x, t, now.cond)
            log_twist, pull = _log_likelihood(d.x0, measurement, _variance(t))
            alpha, sigma = t.floats.alpha, t.floats.sigma
            slope = (sigma**2 / alpha if alpha else 0.0) * vjp(pull)
        denoise.first = denoise.first or d.rows(slice(0, now.log_weights.shape[1]))
        return d, log_twist.reshape(now.log_weights.shape), slope

    def _resample(
        self, now: Particles, noise: StepNoise, carried: tuple[Tensor, ...]
    ) -> tuple[Particles, tuple[Tensor, ...]]:
        """Particles drawn by their weights, of those images where few particles have most of the weight."""
        count, batch = now.log_weights.shape
        if count == 1:
            return now, carried
        total = torch.logsumexp(now.log_weights, 0)
        effective = torch.exp(-torch.logsumexp(2 * (now.log_weights - total), 0))
        few = effective < self.threshold * count
        drawn = _systematic(now.log_weights, count, noise(0, now.x.new_empty(batch, 1))[:, 0])
        same = torch.arange(count, device=now.x.device)[:, None].expand(count, batch)
        rows = torch.where(few, drawn, same) * batch + torch.arange(batch, device=now.x.device)
        rows = rows.flatten()
        evidence = torch.where(few, total - math.log(count), torch.zeros_like(total))
        weights = torch.where(few, torch.zeros_like(now.log_weights), now.log_weights)
        twist = now.log_twist.flatten()[rows].reshape(count, batch)
        moved = now._replace(
            x=now.x[rows], log_weights=weights, log_twist=twist, log_evidence=now.log_evidence + evidence
        )
        return moved, tuple(values[rows] for values in carried)


def _weighed(now: Particles, log_twist: Tensor) -> Particles:
    """The particles weighted by how much better they fit y than those that they came from."""
    return now._replace(log_weights=now.log_weights + log_twist - now.log_twist, log_twist=log_twist)


def _variance(t: Scales) -> float:
    """r^2: variance of x0 given x_t for data of variance 1."""
    alpha, sigma = t.floats.alpha, t.floats.sigma
    return sigma**2 / (alpha**2 + sigma**2)


def _log_likelihood(x0: Tensor, measurement: Measurement, variance: float) -> tuple[Tensor, Tensor]:
    """log N(y; A x0, sigma_y^2 + variance A A*), (B,), and its gradient in x0, (B, C, H, W)."""
    shape = tuple(x0.shape[1:])
    svd = measurement.linear("tds").svd(shape)
    values = svd.values_on(x0)
    spread = measurement.noise_std**2 + variance * values**2
    rest = svd.of_measurement(measurement.residual(x0))
    log_p = -(rest**2 / spread + spread.log() + math.log(2 * math.pi)).sum(1) / 2
    pull = torch.nn.functional.pad(values * rest / spread, (0, x0[0].numel() - len(values)))
    return log_p, svd.to_image(pull, shape)


def _moment_matching(
    denoise: StepDenoiser, now: Particles, t: Scales, measurement: Measurement, iterations: int
) -> tuple[Denoised, Tensor, Tensor]:
    """The prediction, log N(y; A x0, S) but for a constant, and C A* S^-1 (y - A x0), (P B, ...).

    S = sigma_y^2 I + A C A*, for C from the Jacobian. log det S, which costs as many products as y has numbers,
    is left out: weights are exact with any twist.
    """
    operator, shape = measurement.linear("tds"), tuple(now.x.shape[1:])
    prior = linearise(denoise.denoiser, now.x, t, now.cond)

    def system(v: Tensor) -> Tensor:
        return operator.apply(prior.covariance(operator.adjoint(v, shape))) + measurement.noise_std**2 * v

    residual = measurement.residual(prior.denoised.x0)
    solved = minimal_residual(system, residual, iterations)
    # A network's Jacobian need not be positive: a twist above 1 would let one particle take all of the weight.
    log_twist = -(residual * solved).flatten(1).sum(1).clamp(min=0) / 2
    return prior.denoised, log_twist, prior.covariance(operator.adjoint(solved, shape))


def _as_blocks(draws: Tensor) -> Tensor:
    """(B, P, ...) as (P B, ...), in blocks of one particle of every image."""
    return draws.transpose(0, 1).reshape(-1, *draws.shape[2:])


def _systematic(log_weights: Tensor, count: int, z: Tensor) -> Tensor:
    """`count` indices in 0 .. P - 1 for each image, (count, B), by systematic resampling.

    Args:
        log_weights: (P, B).
        count: Of the indices.
        z: (B,) standard normal, of which the one uniform number of each image is made.
    """
    uniform = torch.special.ndtr(z)
    places = (torch.arange(count, dtype=z.dtype, device=z.device)[:, None] + uniform) / count
    ends = torch.softmax(log_weights, 0).cumsum(0).T.contiguous()  # (B, P)
    return torch.searchsorted(ends, places.T.contiguous()).T.clamp(max=len(log_weights) - 1)
