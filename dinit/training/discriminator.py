"""Discriminator of noisy images, real against generated, for discriminator guidance. Kim et al. 2023."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinit.devices import upload
from dinit.diffusion import Process, Scales
from dinit.training.losses.times import TIME_SAMPLERS, TimeSampler

_FREQUENCIES = 16
_LOG_SNR_LIMIT = 20.0  # beyond it an image is clean, or noise, to any network


class NoisyDiscriminator(nn.Module):
    """A small convolutional network for the log-ratio of real to generated images at every noise level.

    Its inputs are the noisy image, the log-SNR and the class. It is given the log-SNR in place of a time, so one
    network serves any process.

    Args:
        channels: Channels of the images.
        num_classes: Number of classes; label num_classes is null.
        width: Features of each layer.
    """

    def __init__(self, channels: int, num_classes: int, width: int = 64) -> None:
        super().__init__()
        self.config = {"channels": channels, "num_classes": num_classes, "width": width}
        self.level = nn.Linear(2 * _FREQUENCIES, width)
        self.label = nn.Embedding(num_classes + 1, width)
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.modulation = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(3))
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)  # starts undecided: guidance by it changes nothing
        nn.init.zeros_(self.head.bias)

    def forward(self, x_t: Tensor, k: Scales, labels: Tensor) -> Tensor:
        """x_t (B, C, H, W), k at one time or one time per sample, labels (B,) int64 -> logits (B,)."""
        weight = self.head.weight
        unit = (k.alpha**2 + k.sigma**2).rsqrt()
        if unit.ndim == 1:
            unit = unit.reshape(-1, *(1,) * (x_t.ndim - 1))
        x = (x_t * unit.to(x_t)).to(weight.dtype)
        c = F.silu(self.level(_features(k.log_snr).to(weight)) + self.label(labels))
        h = self.stem(x)
        for convolution, modulation in zip(self.blocks, self.modulation, strict=True):
            scale, shift = modulation(c)[:, :, None, None].chunk(2, dim=1)
            h = h + convolution(F.silu(h * (1 + scale) + shift))
        return self.head(F.silu(h).mean((2, 3)))[:, 0].to(x_t.dtype)


def _features(log_snr: Tensor) -> Tensor:
    """Sines and cosines of the log-SNR, (N, 2 _FREQUENCIES), N = 1 for a single time."""
    level = log_snr.flatten().clamp(-_LOG_SNR_LIMIT, _LOG_SNR_LIMIT) / _LOG_SNR_LIMIT
    waves = math.pi * 2 ** torch.linspace(-2, 4, _FREQUENCIES, dtype=level.dtype, device=level.device)
    return torch.cat([(level[:, None] * waves).sin(), (level[:, None] * waves).cos()], dim=1)


@dataclass(frozen=True)
class DiscriminatorRecipe:
    """Training of a discriminator: cross-entropy at times drawn as for a denoiser, by AdamW. Kim et al. 2023.

    Source: arXiv:2211.17091. The learning rate falls to 0 along half a cosine.

    Args:
        steps: Optimiser steps, at least 1.
        batch_size: Real images in a batch, and as many generated ones; at least 1.
        learning_rate: AdamW's rate at the first step, positive.
        weight_decay: AdamW's.
        width: Features of each layer, at least 1.
        time_sampler: The distribution of training times: a registered name, or an object.
        seed: Seeds the times, noise, batches and initial weights.

    Raises:
        ValueError: a number is out of its range.
    """

    steps: int = 1000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    width: int = 64
    time_sampler: TimeSampler | str = "uniform"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.width) < 1:
            raise ValueError(
                f"steps, batch_size and width must be at least 1, got {self.steps}, {self.batch_size}, {self.width}"
            )
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")

    def train(
        self,
        process: Process,
        real: tuple[Tensor, Tensor],
        generated: tuple[Tensor, Tensor],
        num_classes: int,
    ) -> NoisyDiscriminator:
        """Train a network that separates real from generated images.

        Args:
            process: The noise process of the denoiser that is to be guided.
            real: Images (N, C, H, W), scaled as the denoiser's, and their labels (N,) int64.
            generated: The same of generated images: about as many, with the same shares of classes.
            num_classes: Number of classes.

        Returns:
            The trained network, in evaluation mode.

        Raises:
            ValueError: images have other shapes, or not one label each.
        """
        for images, labels in (real, generated):
            if images.ndim != 4 or images.shape[1:] != real[0].shape[1:] or labels.shape != images.shape[:1]:
                raise ValueError(
                    f"real and generated images need one shape (N, C, H, W) and a label each, got "
                    f"{tuple(real[0].shape)} and {tuple(images.shape)} with {tuple(labels.shape)} labels"
                )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = NoisyDiscriminator(real[0].shape[1], num_classes, self.width).to(real[0].device)
        optimizer = torch.optim.AdamW(network.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(self.steps):
            loss = self._loss(network, process, real, generated, generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
        return network.eval().requires_grad_(False)

    def _loss(
        self,
        network: NoisyDiscriminator,
        process: Process,
        real: tuple[Tensor, Tensor],
        generated: tuple[Tensor, Tensor],
        generator: torch.Generator,
    ) -> Tensor:
        """Cross-entropy of a batch, half of it real, both halves at the same times."""
        times = TIME_SAMPLERS.create(self.time_sampler)
        t = times.times(self.batch_size, process, process.t_min, 1.0, generator)
        device = real[0].device
        k = process.scales(t).map(lambda v: upload(v, device))
        losses = []
        for (images, labels), truth in zip((real, generated), (1.0, 0.0), strict=True):
            rows = upload(torch.randint(len(images), (self.batch_size,), generator=generator), device)
            x0 = images[rows]
            eps = torch.randn(x0.shape, generator=generator, dtype=torch.float32)
            eps = upload(eps, device, x0.dtype)
            kx = k.like(x0)
            logits = network(kx.alpha * x0 + kx.sigma * eps, k, labels[rows])
            losses.append(F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, truth)))
        return (losses[0] + losses[1]) / 2


@torch.no_grad()
def accuracy_by_time(
    network: NoisyDiscriminator,
    process: Process,
    real: tuple[Tensor, Tensor],
    generated: tuple[Tensor, Tensor],
    times: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
    seed: int = 0,
) -> Iterator[tuple[float, float]]:
    """Accuracy of a discriminator at each time.

    Args:
        network: The discriminator.
        process: The noise process that it was trained on.
        real: Images (N, C, H, W) and their labels (N,) int64.
        generated: The same of generated images.
        times: Times in (0, 1].
        seed: Of the noise.

    Yields:
        (t, share of images classified correctly): 0.5 where real and generated images are indistinguishable.
    """
    generator = torch.Generator().manual_seed(seed)
    for t in times:
        k = process.scales(t)
        right = []
        for (images, labels), sign in zip((real, generated), (1, -1), strict=True):
            eps = torch.randn(images.shape, generator=generator, dtype=torch.float32).to(images)
            right.append((sign * network(k.alpha * images + k.sigma * eps, k, labels) > 0).double().mean())
        yield t, float(sum(right) / 2)
