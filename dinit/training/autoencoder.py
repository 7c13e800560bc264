"""Training of a small AutoencoderKL, to try work on latents without a published autoencoder.

`python -m dinit.training.autoencoder --data glyphs:size=32 --out FOLDER` trains one. The loss is the absolute error
and a small weight on the divergence of the posterior from N(0, 1) (Rombach et al. 2022, section 3.1), without their
adversarial and perceptual terms: reconstructions of photographs are blurred. FOLDER is a model folder of diffusers,
for `dinit encode`.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dinit.cards import CARD, CardMetadata
from dinit.data import DATASETS, ImageData
from dinit.devices import upload
from dinit.evaluation.metrics.reconstruction import psnr, ssim
from dinit.files import whole_folder
from dinit.training import randomness
from dinit.training.batches import Share, batches

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

_MEASURED = 1024  # images that the scaling factor and the figures are measured on
RECORD = "training.json"


@dataclass(frozen=True)
class AutoencoderRecipe:
    """widths: channels at each resolution; latents are 2^(len(widths) - 1) times smaller. layers: blocks at each.

    kl_weight: of the divergence from N(0, 1), a mean over the latent's numbers, added to the mean absolute error.
    ValueError for widths or latent channels < 1, steps < 1, rates <= 0.
    """

    latent_channels: int = 4
    widths: tuple[int, ...] = (32, 64, 64)
    layers: int = 1
    steps: int = 2000
    batch_size: int = 32
    learning_rate: float = 1e-3
    kl_weight: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        counts = (self.latent_channels, *self.widths, self.layers, self.steps, self.batch_size)
        if not self.widths or min(counts) < 1 or self.learning_rate <= 0 or self.kl_weight < 0:
            raise ValueError(f"channels, layers, steps and rates must be positive, got {self}")


def make_autoencoder(recipe: AutoencoderRecipe, channels: int, size: int) -> AutoencoderKL:
    """Freshly initialised from torch's generator, for images (B, channels, size, size). ValueError for a size that
    is not divisible by 2^(len(widths) - 1)."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    levels = len(recipe.widths)
    if size % 2 ** (levels - 1):
        raise ValueError(
            f"{levels} widths halve the image {levels - 1} times, and {size} pixels do not; give fewer"
        )
    return AutoencoderKL(
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * levels,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * levels,  # type: ignore[arg-type]
        block_out_channels=recipe.widths,  # type: ignore[arg-type]
        layers_per_block=recipe.layers,
        latent_channels=recipe.latent_channels,
        norm_num_groups=math.gcd(8, *recipe.widths),
        sample_size=size,
        mid_block_add_attention=False,
    )


def train_autoencoder(
    data: ImageData, recipe: AutoencoderRecipe | None = None, device: str = "cpu"
) -> AutoencoderKL:
    """Trains on the data set; returns evaluation mode, on the CPU.

    AdamW, the rate rising for a twentieth of the steps and then falling as a cosine. At the end the scaling factor
    is set to 1 / the standard deviation of the latents (Rombach et al. 2022, appendix G).
    """
    recipe = recipe or AutoencoderRecipe()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        made = make_autoencoder(recipe, data.channels, data.image_size)
    vae: Any = made
    vae.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps + 1, pct_start=0.05
    )
    source = batches(data, recipe.seed, Share(recipe.batch_size), 1, recipe.steps, workers=0)
    for step, (images, _) in enumerate(source):
        images = upload(images, torch.device(device)).to(memory_format=torch.channels_last)
        loss = _loss(vae, images, recipe, step * recipe.batch_size)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    vae = vae.to("cpu", memory_format=torch.contiguous_format).eval().requires_grad_(False)
    vae.register_to_config(scaling_factor=1 / _latent_std(vae, data, recipe.seed))
    return vae


def _loss(vae: Any, images: Tensor, recipe: AutoencoderRecipe, position: int) -> Tensor:
    """Mean absolute error of a drawn latent's image, and the divergence: Kingma & Welling 2014, appendix B."""
    posterior = vae.encode(images).latent_dist
    noise = randomness.noise(recipe.seed, position, tuple(posterior.mean.shape))
    noise = upload(noise, images.device)
    reconstructed = vae.decode(posterior.mean + posterior.std * noise).sample
    divergence = (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean() / 2
    return (reconstructed - images).abs().mean() + recipe.kl_weight * divergence


@torch.no_grad()
def _latent_std(vae: Any, data: ImageData, seed: int) -> float:
    """Standard deviation of drawn latents, all channels together."""
    count = min(len(data), _MEASURED)
    total, square, numbers = 0.0, 0.0, 0
    for start in range(0, count, 64):
        images = torch.stack([data.image(i) for i in range(start, min(start + 64, count))])
        posterior = vae.encode(images).latent_dist
        z = (posterior.mean + posterior.std * randomness.noise(seed, start, tuple(posterior.mean.shape))).double()
        total, square, numbers = total + float(z.sum()), square + float(z.square().sum()), numbers + z.numel()
    return math.sqrt(square / numbers - (total / numbers) ** 2)


@torch.no_grad()
def reconstruction(vae: Any, data: ImageData, count: int = _MEASURED) -> dict[str, float]:
    """Mean PSNR (dB) and SSIM of the first `count` images, decoded from their posterior's mean."""
    figures = torch.zeros(2, dtype=torch.float64)
    count = min(count, len(data))
    for start in range(0, count, 64):
        images = torch.stack([data.image(i) for i in range(start, min(start + 64, count))])
        decoded = vae.decode(vae.encode(images).latent_dist.mean).sample
        figures += torch.stack([psnr(images, decoded).double().sum(), ssim(images, decoded).double().sum()])
    return {"psnr": float(figures[0]) / count, "ssim": float(figures[1]) / count}


def main() -> None:
    defaults = AutoencoderRecipe()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", required=True, help="the data set, such as glyphs:size=32")
    parser.add_argument("--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--widths", default="32,64,64", help="channels at each resolution, between commas")
    for name in ("latent_channels", "layers", "steps", "batch_size", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(defaults, name))
    parser.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    parser.add_argument("--kl-weight", type=float, default=defaults.kl_weight)
    given = vars(parser.parse_args())
    spec, out = DATASETS.parse(given.pop("data")), given.pop("out")
    if out.exists():
        parser.error(f"{out} is there already; choose another folder")
    recipe = AutoencoderRecipe(**{**given, "widths": tuple(int(width) for width in given["widths"].split(","))})
    data: ImageData = DATASETS.create(spec)
    started = time.perf_counter()
    vae = train_autoencoder(data, recipe, "cuda" if torch.cuda.is_available() else "cpu")
    seconds = time.perf_counter() - started
    facts = {"data": spec, "recipe": asdict(recipe), **reconstruction(vae, data)}
    with whole_folder(out) as temporary:
        vae.save_pretrained(temporary)
        (temporary / RECORD).write_text(json.dumps(facts, indent=2) + "\n")
        head = CardMetadata(("autoencoder",), pipeline_tag="image-to-image", library_name="diffusers")
        (temporary / CARD).write_text(f"{head.front_matter()}# AutoencoderKL, trained by dinit\n", encoding="utf-8")
    figures = f"PSNR {facts['psnr']:.2f} dB, SSIM {facts['ssim']:.4f}"
    print(f"{seconds:.0f} s; {figures}; {sum(p.numel() for p in vae.parameters()):,} parameters → {out}")


if __name__ == "__main__":
    main()
