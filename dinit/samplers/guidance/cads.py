"""CADS: diversity by annealed noise on the condition. Sadat et al. 2024."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from dinit.diffusion import Condition, Denoised, Denoiser, Scales
from dinit.diffusion.process import expand
from dinit.registry import suggest
from dinit.samplers.guidance.base import GUIDANCES, Guidance, Guided, labels_of

On = Literal["embedding", "label"]


def anneal(t: Tensor, tau1: float, tau2: float) -> Tensor:
    """gamma(t), the part of the condition that stays: 1 up to tau1, 0 from tau2, linear between. t: float64."""
    if tau1 == tau2:
        return (t <= tau1).double()
    return ((tau2 - t) / (tau2 - tau1)).clamp(0, 1)


def noised(y: Tensor, noise: Tensor, gamma: Tensor, scale: float, mixing: float) -> Tensor:
    """sqrt(gamma) y + scale sqrt(1 - gamma) noise, with its mean and deviation brought back to those of y.

    Mean and standard deviation are those of each sample, so that it does not depend on its batch; a condition of a
    single number has no deviation and is not brought back.

    Args:
        y: What is noised, (B, ...).
        noise: Standard normal, (B, ...).
        gamma: In [0, 1], broadcastable to y.
        scale: Of the noise.
        mixing: In [0, 1], how far mean and deviation are brought back.

    Returns:
        (B, ...).
    """
    blurred = gamma.sqrt() * y + scale * (1 - gamma).sqrt() * noise
    if mixing == 0 or y[0].numel() < 2:
        return blurred
    axes = tuple(range(1, y.ndim))
    centred = blurred - blurred.mean(axes, keepdim=True)
    spread = blurred.std(axes, keepdim=True).clamp_min(torch.finfo(y.dtype).tiny)  # 0 where scale and gamma are
    rescaled = centred / spread * y.std(axes, keepdim=True) + y.mean(axes, keepdim=True)
    return mixing * rescaled + (1 - mixing) * blurred


@GUIDANCES.register("cads")
@dataclass(frozen=True)
class CADS(Guidance):
    """Condition-annealed sampling: noise on the condition at high noise levels, none later. Sadat et al. 2024.

    y = sqrt(gamma) y + scale sqrt(1 - gamma) noise, with gamma falling linearly from 1 at tau1 to 0 at tau2. The
    noise is drawn from the run's source, by image and step, and rows of the null class are left as they are, so
    CADS may stand inside CFG or around it. Source: arXiv:2310.17347.

    Args:
        tau1: Time up to which the condition is whole, in [0, tau2]; 1 is neutral.
        tau2: Time from which the condition is all noise, in [tau1, 1].
        scale: Standard deviation of the noise, in units of what is noised. At least 0.
        mixing: In [0, 1], how far mean and deviation of the condition are restored, the paper's psi.
        on: What is noised. 'embedding': what the network is conditioned on. 'label': the one-hot vector of the
            class, num_classes numbers, which then weighs the embeddings of all classes, on any network with
            classes.

    Raises:
        ValueError: An option out of its range; from `wrap`, labels of a network without classes; from a run, no
            noise source.
    """

    tau1: float = 0.6
    tau2: float = 0.9
    scale: float = 0.25
    mixing: float = 1.0
    on: On = "embedding"

    def __post_init__(self) -> None:
        if self.on not in get_args(On):
            raise ValueError(f"unknown CADS target {self.on!r}{suggest(str(self.on), list(get_args(On)))}")
        if not 0 <= self.tau1 <= self.tau2 <= 1:
            raise ValueError(f"CADS needs 0 <= tau1 <= tau2 <= 1, got tau1 = {self.tau1}, tau2 = {self.tau2}")
        if not 0 <= self.scale < math.inf:
            raise ValueError(f"CADS noise scale must be >= 0, got {self.scale}")
        if not 0 <= self.mixing <= 1:
            raise ValueError(f"CADS mixing must be in [0, 1], got {self.mixing}")

    def wrap(self, denoiser: Denoiser) -> Denoiser:
        if self.on == "label" and denoiser.num_classes == 0:
            raise ValueError(
                "CADS on labels needs a network with classes, and this one has none: use on='embedding', where the "
                "network is conditioned on something else"
            )

        def guided(x_t: Tensor, t: Scales, cond: Condition) -> Denoised:
            if t.time.ndim == 0 and t.floats.time <= self.tau1:
                return denoiser(x_t, t, cond)
            return denoiser(x_t, t, self._noised(denoiser, cond, anneal(t.time, self.tau1, self.tau2)))

        return Guided(denoiser, guided)

    def _noised(self, denoiser: Denoiser, cond: Condition, gamma: Tensor) -> Condition:
        run = cond.run
        if run.noise_source is None:
            raise ValueError(
                "CADS draws noise from cond.run.noise_source, and this condition has none: run it through a "
                "sampler, or set it with cond.in_run(RunContext(noise_source=NoiseSource.from_seed(seed, batch)))"
            )
        embedded = cond.embedding
        y = self._one_hot(denoiser, cond) if self.on == "label" else embedded
        images = cond.batch // run.copies
        noise = run.noise_source.normal("cads", run.step, like=y[:images])
        noise = noise.repeat(run.copies, *(1,) * (y.ndim - 1))
        if gamma.ndim:
            gamma = expand(gamma, y)
        blurred = noised(y, noise, gamma, self.scale, self.mixing)
        if self.on == "label":
            blurred = torch.tensordot(blurred, self._table(denoiser, cond).to(blurred), dims=1)
        is_null = cond.is_null.reshape(-1, *(1,) * (embedded.ndim - 1))
        return replace(cond, embedding=torch.where(is_null, embedded, blurred.to(embedded)))

    def _one_hot(self, denoiser: Denoiser, cond: Condition) -> Tensor:
        """(B, num_classes), in the embedding's dtype; rows of the null class, which go unused, are of class 0."""
        labels = labels_of(cond, 0, "CADS on labels")
        classes = torch.arange(denoiser.num_classes, device=labels.device)
        return (labels[:, None] == classes).to(cond.embedding)

    @staticmethod
    def _table(denoiser: Denoiser, cond: Condition) -> Tensor:
        """The embeddings of all classes, (num_classes, ...), made once a run."""
        classes = torch.arange(denoiser.num_classes, device=cond.embedding.device)
        return cond.run.states.get(("cads table", denoiser), lambda: denoiser.encode(classes).embedding)
