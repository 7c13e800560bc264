"""The same sampler swap in diffusers and in dinit, with the exact denoiser in place of a network.

The data are N(0, 0.3^2) in every pixel, so the right standard deviation of the images is 0.300 whatever the
sampler (clamped to [-1, 1], as every picture is: 1.000 is an image of nothing but black and white).
diffusers' pipelines are called as they ship; only the network, and the autoencoder by the identity, is
replaced. Run: python benchmarks/swap_safety.py
"""

from __future__ import annotations

import logging
import warnings
from types import SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import dinit.models  # noqa: F401  (makes diffusers importable with a torchvision whose operators do not load)
from dinit.diffusion.discrete import VPDiscrete
from dinit.models.analytic import GaussianDenoiser
from dinit.samplers import SAMPLERS

STD = 0.3
STEPS, BATCH, SIZE = 50, 16, 16
SCHEDULERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp-2m",
}


class ExactEpsilon(nn.Module):
    """E[eps | x_t] of the data, in the shape of a diffusers network."""

    def __init__(self, process: VPDiscrete) -> None:
        super().__init__()
        self.process = process
        self.config = SimpleNamespace(sample_size=SIZE, in_channels=4, out_channels=4)
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(self, x: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> SimpleNamespace:
        level = timestep.double().flatten()[0]
        k = self.process.scales((level + 1) / self.process.num_steps)
        return SimpleNamespace(sample=k.sigma * x / (k.alpha**2 * STD**2 + k.sigma**2))


class Identity(nn.Module):
    """An autoencoder that keeps the latents as they are."""

    config = SimpleNamespace(scaling_factor=1.0)
    dtype, device = torch.float32, torch.device("cpu")

    def decode(self, latents: Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=latents)


def diffusers_std(pipeline: str, scheduler: str) -> float:
    """Standard deviation of what a diffusers pipeline makes after its scheduler was swapped by from_config."""
    import diffusers
    from diffusers import DDPMPipeline, DiTPipeline

    network = ExactEpsilon(VPDiscrete())  # the schedule the network was trained with: linear, 1e-4 to 0.02
    trained = diffusers.DDPMScheduler(clip_sample=False)
    swapped = getattr(diffusers, scheduler).from_config(trained.config)
    torch.manual_seed(0)  # DiTPipeline hands its scheduler no generator
    generator = torch.Generator().manual_seed(0)
    if pipeline == "DiTPipeline":
        pipe = DiTPipeline(transformer=network, vae=Identity(), scheduler=swapped)
        options = {"class_labels": [1] * BATCH, "guidance_scale": 1.0}
    else:
        pipe = DDPMPipeline(unet=network, scheduler=swapped)
        # DDPMPipeline puts its scheduler through DDPMScheduler.from_config when it is made; a swap comes after.
        pipe.scheduler = swapped
        options = {"batch_size": BATCH}
    pipe.set_progress_bar_config(disable=True)
    images = pipe(**options, generator=generator, num_inference_steps=STEPS, output_type="np").images
    return float((2 * images - 1).std())


def dinit_std(sampler: str) -> float:
    """Standard deviation of what dinit makes with the same network and the named sampler."""
    denoiser = GaussianDenoiser(VPDiscrete(), 0.0, STD, (4, SIZE, SIZE))
    noise = torch.randn(BATCH, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    return float(SAMPLERS.create(sampler).sample(denoiser, noise, STEPS).clamp(-1, 1).std())


def outcome(function, *args) -> str:
    """The figure, coloured by whether it is within 0.05 of the truth, or the error that came instead."""
    try:
        value = function(*args)
    except Exception as error:
        return f"[yellow]{type(error).__name__}: {str(error).splitlines()[0]}[/]"
    return f"[{'green' if abs(value - STD) < 0.05 else 'red'}]{value:.3f}[/]"


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    table = Table(
        "scheduler", "DiTPipeline", "DDPMPipeline", "dinit sampler", "dinit",
        title=f"standard deviation of the images; {STD:.3f} is right ({STEPS} steps)",
    )  # fmt: skip
    for scheduler, sampler in SCHEDULERS.items():
        table.add_row(
            scheduler,
            outcome(diffusers_std, "DiTPipeline", scheduler),
            outcome(diffusers_std, "DDPMPipeline", scheduler),
            sampler,
            outcome(dinit_std, sampler),
        )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
