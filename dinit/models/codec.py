"""Codecs: between images and what a denoiser sees."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dinit.registry import Registry

if TYPE_CHECKING:  # a second to import, which work on pixels does not need
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

CODECS: Registry[type[Codec]] = Registry("codec", "dinit.models")

VAE_FOLDER = "vae"


class Codec(nn.Module, ABC):
    """Images (B, C, H, W) in [-1, 1] <-> latents (B, latent_channels, H / downscale, W / downscale).

    A module, so that it moves between devices; it is never trained here.
    """

    image_channels: int
    latent_channels: int
    downscale: int

    @abstractmethod
    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """images -> latents. noise: standard normal, in the latents' shape, to sample with."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """latents -> images, not clamped: a decoder may overshoot [-1, 1] slightly."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path) -> None:
        """Write what `load_codec` needs into a pipeline folder."""

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """(channels, height, width) of an image's latent. ValueError unless downscale divides the sides."""
        if height % self.downscale or width % self.downscale or height < 1 or width < 1:
            raise ValueError(
                f"this codec takes heights and widths that are multiples of {self.downscale}, "
                f"got {height} x {width}; crop or resize the images"
            )
        return self.latent_channels, height // self.downscale, width // self.downscale

    def _check_images(self, images: Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != self.image_channels:
            raise ValueError(f"expected images (B, {self.image_channels}, H, W), got {tuple(images.shape)}")
        self.latent_shape(images.shape[2], images.shape[3])


@CODECS.register("identity")
class IdentityCodec(Codec):
    """Pixels: the denoiser sees the image itself, in [low, high] where its training had another range."""

    downscale = 1

    def __init__(self, channels: int = 3, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be at least 1, got {channels}")
        if not low < high:
            raise ValueError(f"the pixel range needs low < high, got {low} and {high}")
        self.image_channels = self.latent_channels = channels
        self.low, self.high = low, high

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The images, from [-1, 1] to [low, high]; noise is not used."""
        self._check_images(images)
        if (self.low, self.high) == (-1, 1):
            return images
        return self.low + (images + 1) * ((self.high - self.low) / 2)

    def decode(self, latents: Tensor) -> Tensor:
        """From [low, high] back to [-1, 1]."""
        if (self.low, self.high) == (-1, 1):
            return latents
        return (latents - self.low) * (2 / (self.high - self.low)) - 1

    def save_pretrained(self, folder: str | Path) -> None:
        """Nothing to write: a pipeline folder without a codec works on pixels, whose range its index says."""


@CODECS.register("autoencoder-kl")
class AutoencoderKLCodec(Codec):
    """A diffusers AutoencoderKL: latent = (z - shift_factor) * scaling_factor.

    vae: an AutoencoderKL; it is frozen and put into evaluation mode. scaling_factor, shift_factor: in place
    of those in its config (they are saved with it); a missing shift is 0. ValueError for a scaling factor <= 0.
    """

    def __init__(
        self, vae: AutoencoderKL, scaling_factor: float | None = None, shift_factor: float | None = None
    ) -> None:
        super().__init__()
        if scaling_factor is not None:
            vae.register_to_config(scaling_factor=scaling_factor)
        if shift_factor is not None:
            vae.register_to_config(shift_factor=shift_factor)
        config: Any = vae.config
        if not config.scaling_factor > 0:
            raise ValueError(f"scaling_factor must be positive, got {config.scaling_factor}")
        self.vae: Any = vae.requires_grad_(False).eval()
        self.image_channels = config.in_channels
        self.latent_channels = config.latent_channels
        self.downscale = 2 ** (len(config.block_out_channels) - 1)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> AutoencoderKLCodec:
        """From a diffusers folder or hub id; options (subfolder, torch_dtype) go to diffusers."""
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

        return cls(AutoencoderKL.from_pretrained(path, **options))

    @property
    def scaling_factor(self) -> float:
        """What latents are multiplied by, so that their standard deviation is near 1."""
        return self.vae.config.scaling_factor

    @property
    def shift_factor(self) -> float:
        """What is subtracted from z before scaling."""
        return self.vae.config.shift_factor or 0.0

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The posterior's mean, or mean + std * noise; in the dtype of the images."""
        self._check_images(images)
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        z = posterior.mean if noise is None else posterior.mean + posterior.std * noise.to(posterior.mean)
        return ((z - self.shift_factor) * self.scaling_factor).to(images.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, latent_channels, h, w) -> images, in the dtype of the latents."""
        z = latents / self.scaling_factor + self.shift_factor
        return self.vae.decode(z.to(self.vae.dtype)).sample.to(latents.dtype)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write folder/vae, as diffusers pipelines keep it."""
        self.vae.save_pretrained(Path(folder) / VAE_FOLDER)

    def train(self, mode: bool = True) -> AutoencoderKLCodec:
        """Stays in evaluation mode: the autoencoder is frozen."""
        return super().train(False)


def load_codec(folder: str | Path, channels: int = 3, dtype: torch.dtype | None = None) -> Codec:
    """The codec of a local pipeline folder: its vae, or the identity on `channels` where it has none.

    The identity's pixel range is the one in the folder's model_index.json, where there is one.
    """
    if (Path(folder) / VAE_FOLDER).is_dir():
        options = {} if dtype is None else {"torch_dtype": dtype}
        return AutoencoderKLCodec.from_pretrained(folder, subfolder=VAE_FOLDER, **options)
    index = Path(folder) / "model_index.json"
    config = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    return IdentityCodec(channels, *config.get("pixel_range", ()))
