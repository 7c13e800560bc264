"""Codecs: between images and what a denoiser sees."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dinit.compat import dtype_option
from dinit.registry import Registry

if TYPE_CHECKING:  # a second to import, which work on pixels does not need
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

CODECS: Registry[type[Codec]] = Registry("codec", "dinit.models", subfolders=False)

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

    Where its config has latents_mean and latents_std, one a channel, latent = (z - mean) / std * scaling_factor, as
    diffusers reads them.
    vae: an AutoencoderKL; it is frozen and put into evaluation mode. scaling_factor, shift_factor: in place
    of those in its config (they are saved with it); a missing shift is 0. latents_mean, latents_std: both, in
    place of everything that the config says: then latent = (z - mean) / std. ValueError for a scaling factor or a
    std <= 0, another number of channels, or a config that has a shift and a mean.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        scaling_factor: float | None = None,
        shift_factor: float | None = None,
        latents_mean: Sequence[float] | None = None,
        latents_std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if latents_mean is not None and latents_std is not None:
            given = {"latents_mean": list(latents_mean), "latents_std": list(latents_std)}
            vae.register_to_config(**given, scaling_factor=1.0, shift_factor=None)
        if scaling_factor is not None:
            vae.register_to_config(scaling_factor=scaling_factor)
        if shift_factor is not None:
            vae.register_to_config(shift_factor=shift_factor)
        config: Any = vae.config
        if not config.scaling_factor > 0:
            raise ValueError(f"scaling_factor must be positive, got {config.scaling_factor}")
        _check_normalisation(config)
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

    @property
    def latents_mean(self) -> list[float] | None:
        """What is subtracted from each channel of z, where the config says so."""
        return self.vae.config.latents_mean

    @property
    def latents_std(self) -> list[float] | None:
        """What each channel is then divided by, before the scaling factor."""
        return self.vae.config.latents_std

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z, neither shifted nor scaled, in the autoencoder's dtype."""
        self._check_images(images)
        distribution = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return distribution.mean, distribution.std

    def encode(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The posterior's mean, or mean + std * noise; in the dtype of the images."""
        mean, std = self.posterior(images)
        z = mean if noise is None else mean + std * noise.to(mean)
        shift, scale = self._shift_and_scale(z)
        return ((z - shift) * scale).to(images.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """(B, latent_channels, h, w) -> images, in the dtype of the latents."""
        shift, scale = self._shift_and_scale(latents)
        z = latents / scale + shift
        return self.vae.decode(z.to(self.vae.dtype)).sample.to(latents.dtype)

    def _shift_and_scale(self, like: Tensor) -> tuple[Any, Any]:
        """latent = (z - shift) * scale: numbers, or (C, 1, 1) where each channel has its own."""
        if self.latents_mean is None:
            return self.shift_factor, self.scaling_factor
        mean, std = (like.new_tensor(values)[:, None, None] for values in (self.latents_mean, self.latents_std))
        return mean, self.scaling_factor / std

    def save_pretrained(self, folder: str | Path) -> None:
        """Write folder/vae, as diffusers pipelines keep it."""
        self.vae.save_pretrained(Path(folder) / VAE_FOLDER)

    def train(self, mode: bool = True) -> AutoencoderKLCodec:
        """Stays in evaluation mode: the autoencoder is frozen."""
        return super().train(False)


def open_autoencoder(place: str | Path, dtype: torch.dtype | None = None) -> AutoencoderKL:
    """The AutoencoderKL in a folder of diffusers, in the vae/ of a pipeline folder, or of a hub id of either.

    Safetensors only. Its tensors are moved to memory of their own, see `align`. ValueError where there is none, it
    is of another class, or tensors are missing: diffusers would fill those with random numbers.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    options = dtype_option(dtype)
    try:
        config, part = _autoencoder_config(place)
        if config.get("_class_name") != "AutoencoderKL":
            raise ValueError(f"its config is of the class {config.get('_class_name')!r}")
        loaded: Any = AutoencoderKL.from_pretrained(
            place, **part, **options, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        reason = str(error).strip().split("\n", 1)[0]
        raise ValueError(
            f"{place} gave no AutoencoderKL: {reason}; wanted: a folder with its config.json and safetensors, a "
            f"pipeline folder with {VAE_FOLDER}/, or a hub id of either"
        ) from error
    vae, info = loaded
    lost = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    if lost:
        raise ValueError(f"the weights in {place} lack {len(lost)} tensors that its config asks for, as {lost[0]}")
    align([vae])
    return vae


def align(parts: Iterable[nn.Module]) -> None:
    """Moves tensors that lie askew in a mapped file to memory of their own.

    Kernels of the CPU choose their order of summation by alignment: without this a loaded network's numbers
    differ from the saved one's in the last bits.
    """
    for part in parts:
        for tensor in (*part.parameters(), *part.buffers()):
            if tensor.device.type == "cpu" and tensor.data_ptr() % 64:
                tensor.data = tensor.data.clone()


def _autoencoder_config(place: str | Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The config, and where it lies: {} or {"subfolder": "vae"}. OSError where it is in neither place."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    if (Path(place) / VAE_FOLDER).is_dir():
        return AutoencoderKL.load_config(place, subfolder=VAE_FOLDER), {"subfolder": VAE_FOLDER}  # type: ignore[return-value]
    try:
        return AutoencoderKL.load_config(place), {}  # type: ignore[return-value]
    except OSError as error:
        if Path(place).exists():
            raise
        try:
            config = AutoencoderKL.load_config(place, subfolder=VAE_FOLDER)
        except OSError:
            raise error from None  # what the first place said
        return config, {"subfolder": VAE_FOLDER}  # type: ignore[return-value]


def _check_normalisation(config: Any) -> None:
    """ValueError unless latents_mean and latents_std are both absent, or one number a channel with std > 0."""
    mean, std = config.latents_mean, config.latents_std
    if mean is None and std is None:
        return
    channels = config.latent_channels
    if mean is None or std is None or len(mean) != channels or len(std) != channels:
        told = ", ".join("none" if values is None else str(len(values)) for values in (mean, std))
        raise ValueError(f"latents_mean and latents_std need a number for each of {channels} channels, got {told}")
    if not all(value > 0 for value in std):
        raise ValueError(f"latents_std must be positive, got {list(std)}")
    if config.shift_factor:
        raise ValueError(
            f"the autoencoder's config has a shift_factor ({config.shift_factor}) and a latents_mean, and only one "
            "of them can be meant; remove the other"
        )


def load_codec(folder: str | Path, channels: int = 3, dtype: torch.dtype | None = None) -> Codec:
    """The codec of a local pipeline folder: its vae, or the identity on `channels` where it has none.

    The identity's pixel range is the one in the folder's model_index.json, where there is one.
    """
    if (Path(folder) / VAE_FOLDER).is_dir():
        options = dtype_option(dtype)
        return AutoencoderKLCodec.from_pretrained(folder, subfolder=VAE_FOLDER, **options)
    index = Path(folder) / "model_index.json"
    config = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    return IdentityCodec(channels, *config.get("pixel_range", ()))
