"""A network of a few numbers, as a denoiser of any process on any device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinit.diffusion import PARAMETERIZATIONS, BackboneDenoiser, Process
from dinit.diffusion.continuous import EDM, VE, LinearFlow

SHAPE = (2, 4, 4)


class SmallBackbone(nn.Module):
    """A convolution, scaled and shifted by a time and a class."""

    num_classes, in_channels, dtype = 3, SHAPE[0], torch.float32

    def __init__(self, learns_variance: bool = False) -> None:
        super().__init__()
        self.out_channels = self.in_channels * (2 if learns_variance else 1)
        self.classes = nn.Embedding(self.num_classes + 1, 4)
        self.time = nn.Linear(2, 4)
        self.modulation = nn.Linear(4, 2 * self.in_channels)
        self.conv = nn.Conv2d(self.in_channels, self.out_channels, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)

    def embed(self, labels: Tensor) -> Tensor:
        return self.classes(labels)

    def forward(self, x: Tensor, noise_label: Tensor, cond: Tensor) -> Tensor:
        angle = (noise_label / 1000).to(x.dtype)[:, None]
        hidden = cond + self.time(torch.cat([angle.cos(), angle.sin()], dim=1))
        scale, shift = self.modulation(hidden)[:, :, None, None].chunk(2, dim=1)
        return self.conv(x * (1 + scale) + shift)


def small_denoiser(
    process: Process, device: torch.device | str = "cpu", learns_variance: bool = False
) -> BackboneDenoiser:
    """The network on the device, as a denoiser of the process."""
    name = "velocity" if isinstance(process, LinearFlow) else "edm" if isinstance(process, EDM | VE) else "v"
    backbone = SmallBackbone(learns_variance).requires_grad_(False).to(device)
    return BackboneDenoiser(backbone, process, PARAMETERIZATIONS.create(name))


def small_noise(batch: int = 2) -> Tensor:
    """(batch, *SHAPE) standard normal, on the host."""
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(1))
